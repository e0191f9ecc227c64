"""Exports a checkpoint in progress as a model folder.

    python export.py --model nano --data DIR --out nano

The tokenizer's files must already stand in the folder (`tokenizer.py`).
"""

import argparse
from pathlib import Path

import torch

from llama import SHAPES, Llama, export

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = Llama(SHAPES[args.model])
    state = torch.load(args.data / f"{args.model}.pt", weights_only=True)
    model.load_state_dict(state["model"])
    export(model, args.out)
    print(f"{args.out}: step {state['step']}")

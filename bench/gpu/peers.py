"""transformers on the GPU, with its continuous batching: the figures that `polylink bench engine` has of ours.

    python peers.py FOLDER OUT.json [--prompt TOKENS]… [--decode STREAMSxPROMPT+TOKENS]… [--load STREAMSxPROMPT+TOKENS]…

A figure that fails is named and left out. Tokens are counted; a figure of another number than asked for counts as failed.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

try:
    import torch
    import transformers
except ImportError as error:
    print(f"  {error}: no peer is measured")
    sys.exit(77)

RUNS = 5


def load(text: str) -> tuple[int, int, int]:
    streams, rest = text.split("x")
    prompt, completion = rest.split("+")
    return int(streams), int(prompt), int(completion)


def prompts(streams: int, length: int, seed: int) -> list[list[int]]:
    """Ids that any of our vocabularies has as ordinary tokens, as in our own figures."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(300, 2048, (streams, length), generator=generator).tolist()


def prefill(model, tokens: int) -> float:
    """Prompt tokens per second of one forward pass that gives the last position's logits; a median."""
    ids = torch.tensor(prompts(1, tokens, 1), device="cuda")
    times = []
    with torch.inference_mode():
        for run in range(RUNS + 1):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax().item()
            times.append(time.perf_counter() - begun)
    return tokens / statistics.median(times[1:])


def batch(model, streams: int, length: int, wanted: int) -> list:
    """The answers to a load, whose graphs are captured before it begins."""
    settings = transformers.GenerationConfig(max_new_tokens=wanted, do_sample=False, eos_token_id=-1, pad_token_id=0)
    answers = model.generate_batch(
        inputs=prompts(streams, length, streams + length), generation_config=settings, record_timestamps=True
    )
    answers = list(answers.values())
    counted = sorted({len(answer.generated_tokens) for answer in answers})
    if len(answers) != streams or counted != [wanted]:
        raise RuntimeError(f"{streams} answers of {wanted} tokens were asked for, there are {len(answers)} of {counted}")
    return answers


def serve(model, streams: int, length: int, wanted: int) -> float:
    """Completion tokens per second, prompts included in the time."""
    answers = batch(model, streams, length, wanted)
    # Before that its graphs are captured.
    begun = min(answer.lifespan[0] for answer in answers)
    return streams * wanted / (max(answer.lifespan[1] for answer in answers) - begun)


def decode(model, streams: int, length: int, wanted: int) -> float:
    """Completion tokens per second while every stream is past its prompt and none has ended."""
    answers = batch(model, streams, length, wanted + streams // 4)
    begin = max(answer.timestamps[0] for answer in answers)
    end = min(answer.timestamps[-1] for answer in answers)
    tokens = sum(sum(begin < stamp <= end for stamp in answer.timestamps) for answer in answers)
    if end <= begin:
        raise RuntimeError("there was no time in which all streams were under way")
    return tokens / (end - begin)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", type=int, action="append", default=[])
    parser.add_argument("--decode", type=load, action="append", default=[])
    parser.add_argument("--load", type=load, action="append", default=[])
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("  torch sees no GPU: no peer is measured")
        return 77
    begun = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.bfloat16).to("cuda").eval()
    attention = model.config._attn_implementation
    about = f"transformers {transformers.__version__}, torch {torch.__version__}, attention {attention}"
    print(f"  {about}: loaded in {time.perf_counter() - begun:.1f} s", flush=True)
    figures = [(f"prefill_{tokens}", lambda tokens=tokens: prefill(model, tokens)) for tokens in given.prompt]
    for kind, name, loads in ((decode, "decode", given.decode), (serve, "serve", given.load)):
        for of in loads:
            full = f"{name}_{of[0]}x{of[1]}" + (f"+{of[2]}" if kind is serve else "")
            figures.append((full, lambda kind=kind, of=of: kind(model, *of)))
    rows, failed = [], []
    for name, figure in figures:
        try:
            rate = figure()
        except Exception as error:  # whatever goes wrong in a peer is a line of the report
            failed.append({"name": name, "error": f"{type(error).__name__}: {error}"[:400]})
            print(f"  {name}: FAILED: {failed[-1]['error']}", flush=True)
            continue
        rows.append({"name": name, "value": rate, "unit": "tokens/s"})
        print(f"  {name}: {rate:.1f} tokens/s", flush=True)
        given.out.write_text(json.dumps({"about": about, "rows": rows, "failed": failed}, indent=1))
    given.out.write_text(json.dumps({"about": about, "rows": rows, "failed": failed}, indent=1))
    return 1 if failed else 0


sys.exit(main())

"""The tokenizer and chat template of the project's own models.

    python tokenizer.py --data DIR --out FOLDER

learns a byte-level BPE of 2048 tokens from `DIR/train.jsonl` and writes
`tokenizer.json`, `tokenizer_config.json` (with the chat template) and
`generation_config.json`. Every digit is a token of its own, so that numbers
look the same wherever they stand.
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
PAD, BOS, END = 0, 1, 2
CONTEXT = 1024
LINES = 120_000  # conversations that the merges are learned from

# Text, loops and tests only, so that every implementation of the template language renders it alike.
TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def learn(lines: Path) -> Tokenizer:
    """Learns the merges from the first conversations of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        show_progress=False,
    )

    def texts():
        with open(lines) as f:
            for _, line in zip(range(LINES), f):
                for message in json.loads(line)["messages"]:
                    yield message["content"]

    tokenizer.train_from_iterator(texts(), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY, tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == list(range(len(SPECIAL)))
    return tokenizer


def write(tokenizer: Tokenizer, out: Path) -> None:
    """Writes the tokenizer's files of a model folder."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>",
        "add_bos_token": False, "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({
        "bos_token_id": BOS, "eos_token_id": [END], "pad_token_id": PAD,
        "do_sample": True, "temperature": 0.3, "top_p": 0.95,
    }, indent=2) + "\n")


def encode(tokenizer: Tokenizer, messages: list[dict[str, str]], generation_prompt: bool = False) -> list[list[int]]:
    """Token ids of a rendered conversation, one list per message (the first also holds the begin token)."""
    out = []
    for i, message in enumerate(messages):
        text = ("<|bos|>" if i == 0 else "") + f"<|{message['role']}|>{message['content']}<|end|>"
        out.append(tokenizer.encode(text, add_special_tokens=False).ids)
    if generation_prompt:
        out.append([tokenizer.token_to_id("<|assistant|>")])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, action="append", help="a model folder; may be given more than once")
    args = parser.parse_args()
    tokenizer = learn(args.data / "train.jsonl")
    for out in args.out:
        write(tokenizer, out)


if __name__ == "__main__":
    main()

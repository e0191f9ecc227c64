"""Measures the models on what training never saw.

    python eval.py [--write]

prints, and with `--write` puts into README.md between its marks: exact match
of nano and pico by category, for new instances and new wordings apart; the AUC
between right and degraded answers of the cross-encoder and of nano as judge.
Greedy decoding, weights upcast to f32.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer

import bert
import corpus_talk
import llama
from tokenizer import END, PAD, encode
from train_cross_encoder import encode as encode_pair
from train_cross_encoder import pair_tokenizer

HERE = Path(__file__).parent
MARKS = "<!-- figures: written by eval.py -->", "<!-- end of figures -->"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / "eval" / name).read_text().splitlines()]


def answers(model: llama.Llama, tokenizer: Tokenizer, conversations: list[list[dict[str, str]]]) -> list[str]:
    """Greedy answers, in the given order."""
    prompts = [sum(encode(tokenizer, c, generation_prompt=True), []) for c in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [""] * len(prompts)
    for at in range(0, len(order), 64):
        part = order[at : at + 64]
        for i, ids in zip(part, model.generate([prompts[i] for i in part])):
            out[i] = tokenizer.decode([t for t in ids if t != END], skip_special_tokens=False)
    return out


@torch.no_grad()
def judge_scores(model: llama.Llama, tokenizer: Tokenizer, pairs: list[dict]) -> list[float]:
    """Expected value over the judge's score tokens."""
    tokens = torch.tensor([tokenizer.token_to_id(s["token"]) for s in corpus_talk.JUDGE["scores"]])
    values = torch.tensor([s["value"] for s in corpus_talk.JUDGE["scores"]])
    out = []
    for p in pairs:
        message = corpus_talk.user(corpus_talk.judge_prompt(p["question"], p["answer"]))
        ids = sum(encode(tokenizer, [message], generation_prompt=True), [])
        logits = model.logits(model(torch.tensor([ids]))[0, -1])
        out.append(float((logits[tokens].softmax(-1) * values).sum()))
    return out


@torch.no_grad()
def cross_scores(model: bert.CrossEncoder, tokenizer: Tokenizer, pairs: list[dict]) -> list[float]:
    """Score logits of the pairs."""
    rows = [encode_pair(tokenizer, p["question"], p["answer"]) for p in pairs]
    out = []
    for at in range(0, len(rows), 64):
        part = rows[at : at + 64]
        longest = max(len(r[0]) for r in part)
        ids = torch.tensor([r[0] + [PAD] * (longest - len(r[0])) for r in part])
        types = torch.tensor([r[1] + [0] * (longest - len(r[1])) for r in part])
        out.extend(model(ids, types).tolist())
    return out


def auc(good: list[float], bad: list[float]) -> float:
    """Probability that a right answer scores above a degraded one (ties count half)."""
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def matches(rows: list[dict], given: dict[str, list[str]]) -> list[str]:
    """Table of exact match by category."""
    right: dict = defaultdict(lambda: defaultdict(list))
    for i, row in enumerate(rows):
        for name, texts in given.items():
            right[row["category"]][name, row["kind"]].append(texts[i] == row["answer"])
            right["**all**"][name, row["kind"]].append(texts[i] == row["answer"])
    names = list(given)
    lines = ["| category | " + " | ".join(f"{n}, new instances | {n}, new wordings" for n in names) + " |", "| --- |" + " --- |" * (2 * len(names))]
    for category in sorted(right, key=lambda c: (c.startswith("*"), c)):
        cells = []
        for name in names:
            for kind in ("instance", "wording"):
                hits = right[category].get((name, kind), [])
                cells.append(f"{100 * sum(hits) / len(hits):.0f} % of {len(hits)}" if hits else "–")
        lines.append(f"| {category} | " + " | ".join(cells) + " |")
    for name in names:
        hits = [a for (n, _), b in right["**all**"].items() if n == name for a in b]
        lines.append(f"\n{name}: **{100 * sum(hits) / len(hits):.1f} %** of all {len(hits)} held-out questions.")
    return lines


def curves(pairs: list[dict], scores: dict[str, list[float]]) -> list[str]:
    """Table of AUC by how the answer was degraded."""
    lines = ["| against right answers | " + " | ".join(scores) + " |", "| --- |" + " --- |" * len(scores)]
    for how in ["**all**", *sorted({p["how"] for p in pairs if not p["good"]})]:
        cells, count = [], 0
        for values in scores.values():
            good = [v for v, p in zip(values, pairs) if p["good"]]
            bad = [v for v, p in zip(values, pairs) if not p["good"] and how in ("**all**", p["how"])]
            cells.append(f"{auc(good, bad):.3f}")
            count = len(bad)
        lines.append(f"| {how} ({count}) | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update README.md")
    parser.add_argument("--wrong", type=int, default=0, help="also print this many wrong answers of nano")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(HERE / "nano" / "tokenizer.json"))
    models = {n: llama.load(HERE / n) for n in ("nano", "pico") if (HERE / n / "model.safetensors").exists()}
    rows, pairs = read("heldout.jsonl"), read("judged.jsonl")
    with torch.no_grad():
        given = {n: answers(m, tokenizer, [r["messages"] for r in rows]) for n, m in models.items()}
    scores = {"nano as judge": judge_scores(models["nano"], tokenizer, pairs)}
    if (HERE / "cross-encoder" / "model.safetensors").exists():
        scores = {"cross-encoder": cross_scores(bert.load(HERE / "cross-encoder"), pair_tokenizer(HERE / "nano"), pairs), **scores}
    report = "\n".join(["### Exact match, held out", "", *matches(rows, given), "", "### AUC between right and degraded answers", "", *curves(pairs, scores)])
    print(report)
    wrong = [(r, a) for r, a in zip(rows, given["nano"]) if a != r["answer"]]
    for row, answer in random.Random(0).sample(wrong, min(args.wrong, len(wrong))):
        print(f"{row['kind']}/{row['name']}: {row['question']!r} -> {answer!r}, not {row['answer']!r}")
    if args.write:
        path = HERE / "README.md"
        text = path.read_text()
        before, rest = text.split(MARKS[0])
        path.write_text(before + MARKS[0] + "\n" + report + "\n" + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()

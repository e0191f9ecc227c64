"""Trains the cross-encoder: (question, answer) to the probability that the answer is good.

    python train_cross_encoder.py --data DIR --tokenizer FOLDER --pairs 500000 [--export FOLDER]

Pairs are drawn from the corpus's generator: right answers, and degraded ones
(a wrong value that looks right, another question's answer, cut short,
shuffled, fluent nonsense). One bit per pair teaches facts slowly, so half of
the rows are right pairs with answer tokens masked, which the encoder learns to
fill in. Resumes exactly from its last checkpoint, like `train.py`.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, processors

import corpus
from bert import CrossEncoder, Shape, export
from tokenizer import BOS, END, PAD
from train import CHECKPOINT_SECONDS, Muon, rate

QUESTION_TOKENS, ANSWER_TOKENS = 160, 80
MASK = 3  # the id of <|system|>, which no pair contains
CHUNK = 2048  # pairs drawn at a time, sorted by length
MICRO_TOKENS, MICROS = 3072, 3


def pair_tokenizer(folder: Path) -> Tokenizer:
    """The models' tokenizer with a template for pairs: begin, question, end, answer, end; types 0 and 1."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|end|>", pair="<|bos|> $A <|end|> $B:1 <|end|>:1", special_tokens=[("<|bos|>", BOS), ("<|end|>", END)]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": Shape().positions,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "cls_token": "<|bos|>", "sep_token": "<|end|>", "pad_token": "<|pad|>", "clean_up_tokenization_spaces": False,
    }, indent=2) + "\n")


def encode(tokenizer: Tokenizer, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids and types of a pair: the question's last 160 tokens, the answer's first 80."""
    q = tokenizer.encode(question, add_special_tokens=False).ids[-QUESTION_TOKENS:]
    a = tokenizer.encode(answer, add_special_tokens=False).ids[:ANSWER_TOKENS]
    return [BOS, *q, END, *a, END], [0] * (len(q) + 2) + [1] * (len(a) + 1)


def chunk(number: int, seed: int, tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...]]:
    """Micro-batches of the chunk `number`: ids, types, targets (-1: none), labels (-1: none)."""
    rng = random.Random(seed * 1_000_003 + number)
    rows = []
    for _ in range(CHUNK):
        pair = corpus.judged(rng)
        ids, types = encode(tokenizer, pair["question"], pair["answer"])
        targets, label = [-1] * len(ids), float(pair["good"])
        if pair["good"] and rng.random() < 0.6:
            share = rng.choice([0.3, 0.6, 1.0])
            for i in range(len(ids) - 1):
                if types[i] == 1 and rng.random() < share:
                    targets[i], ids[i] = ids[i], MASK
            label = -1.0 if MASK in ids else label
        rows.append((ids, types, targets, label))
    rows.sort(key=lambda r: len(r[0]))
    out, start = [], 0
    for i in range(len(rows) + 1):
        if i == len(rows) or (i > start and (i + 1 - start) * len(rows[i][0]) > MICRO_TOKENS):
            part = rows[start:i]
            longest = len(part[-1][0])
            pad = lambda column, fill: np.array([r[column] + [fill] * (longest - len(r[0])) for r in part], dtype=np.int64)  # noqa: E731
            out.append((pad(0, PAD), pad(1, 0), pad(2, -1), np.array([r[3] for r in part], dtype=np.float32)))
            start = i
    rng.shuffle(out)
    return out


def objective(model: CrossEncoder, ids: torch.Tensor, types: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the losses: of the scores, and of the guesses of masked tokens."""
    hidden = model.hidden(ids, types)
    scored = (labels >= 0).float()
    judged = (F.binary_cross_entropy_with_logits(model.score(hidden).float(), labels.clamp(min=0), reduction="none") * scored).sum()
    logits = F.linear(hidden.flatten(0, 1), model.bert.embeddings.word_embeddings.weight).float()
    return judged, F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--hold", type=float, default=0.3, help="share of the chunks at the full rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = pair_tokenizer(args.tokenizer)
    model = CrossEncoder(Shape())
    loss_of = torch.compile(objective, dynamic=True) if args.compile else objective
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embeddings" not in n and "classifier" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() == 1 or "embeddings" in n or "classifier" in n]
    optimisers = [(Muon(matrices, lr=0.01), 0.01), (torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True), 2e-3)]
    chunks = args.pairs // CHUNK
    checkpoint = args.data / "cross-encoder.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for (optimiser, _), saved in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        first = state["chunk"]
    print(f"cross-encoder: {sum(p.numel() for p in model.parameters())} parameters, {chunks} chunks, from {first}", flush=True)

    def save(done: int) -> None:
        partial = checkpoint.with_suffix(".partial")
        torch.save({"model": model.state_dict(), "optimisers": [o.state_dict() for o, _ in optimisers], "chunk": done}, partial)
        os.replace(partial, checkpoint)

    begun = saved_at = time.time()
    for number in range(first, chunks):
        micros = chunk(number, args.seed, tokenizer)
        sums = np.zeros(4)
        for optimiser, full in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = full * rate(number, chunks, warm=6, hold=args.hold)
        for at in range(0, len(micros), MICROS):
            parts = [tuple(map(torch.from_numpy, m)) for m in micros[at : at + MICROS]]
            scored = max(1, sum(int((p[3] >= 0).sum()) for p in parts))
            masked = max(1, sum(int((p[2] >= 0).sum()) for p in parts))
            for ids, types, targets, labels in parts:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    judged, guessed = loss_of(model, ids, types, targets, labels)
                (judged / scored + guessed / masked).backward()
                sums += [float(judged.detach()), scored / len(parts), float(guessed.detach()), masked / len(parts)]
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            for optimiser, _ in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        if (number + 1) % 4 == 0 or number + 1 == chunks:
            now = time.time()
            print(f"chunk {number + 1}/{chunks} score loss {sums[0] / sums[1]:.4f} guess loss {sums[2] / sums[3]:.4f} {(number + 1 - first) * CHUNK / (now - begun):.0f} pairs/s {now - begun:.0f} s", flush=True)
        if time.time() - saved_at > CHECKPOINT_SECONDS:
            save(number + 1)
            saved_at = time.time()
    save(chunks)
    if args.export:
        export(model, args.export)
        write_tokenizer(tokenizer, args.export)


if __name__ == "__main__":
    main()

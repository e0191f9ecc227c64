"""Makes the corpus: training conversations, held-out questions, judged answers.

    python corpus.py --data DIR [--conversations N] [--seed S]

writes `DIR/train.jsonl` (one conversation a line: messages, and per message a
weight of the loss on it) and, with `--eval` and that file in place, the
committed `eval/heldout.jsonl` and `eval/judged.jsonl`. The same seed gives the same
files. What is held out never enters the training text: instances by the hash
of their key, facts by the hash of (fact, template), wordings by their place in
the `held` lists of each kind.
"""

import argparse
import json
import random
from pathlib import Path

import corpus_talk as talk
from corpus_kinds import ARITHMETIC, COMPARISONS, DATES, MEASURES, SEEN, Item, Kind, held_out
from corpus_kinds_words import FACTS, LANGUAGE, LISTS
from corpus_wording import ASK_SENTENCE, ASK_SHORT, SYSTEM, dress, expand

KINDS: list[Kind] = ARITHMETIC + MEASURES + DATES + COMPARISONS + LISTS + FACTS + LANGUAGE + talk.SMALL_TALK + talk.DO_NOT_KNOW
WEIGHTS = [k.weight for k in KINDS]
HERE = Path(__file__).parent


def draw(kind: Kind, rng: random.Random, want: str) -> tuple[Item, str, str]:
    """An instance of `kind`, a question about it and its answer.

    `want` is "seen" (training), "instance" (held-out instance or pair, seen
    wording) or "wording" (seen instance, held-out wording).
    """
    templates = kind.held if want == "wording" else kind.seen
    while True:
        item = kind.draw(rng)
        at = rng.randrange(len(templates))
        parts = (kind.name, item.key, at) if kind.by_pair and want != "wording" else (kind.name, item.key)
        hidden = held_out(*parts) if want != "wording" or not kind.by_pair else False
        if hidden != (want == "instance"):
            continue
        core = expand(templates[at], rng, item.slots)
        core = core[0].upper() + core[1:] if kind.noise and core[0] not in "([" else core
        answer, closer = (item.short if kind.short else item.sentence), None
        dice = rng.random()
        if kind.both and want == "seen" and item.short != item.sentence:
            if dice < 0.09:
                answer, closer = item.short, rng.choice(ASK_SHORT)
            elif dice < 0.12:
                answer, closer = item.sentence, rng.choice(ASK_SENTENCE)
        return item, dress(core, rng, held=want == "wording", noise=kind.noise, closer=closer), answer


def any_kind(rng: random.Random) -> Kind:
    return rng.choices(KINDS, WEIGHTS)[0]


def judged(rng: random.Random, want: str = "seen") -> dict:
    """A question with a right or a degraded answer, even odds."""
    while True:
        kind = any_kind(rng)
        if kind.category == "small talk" and rng.random() < 0.7:
            continue
        if want == "instance" and kind.category in ("small talk", "not knowing"):
            continue
        break
    item, question, answer = draw(kind, rng, want)
    how = "right"
    if rng.random() < 0.5:
        _, _, other = draw(any_kind(rng), rng, "seen")
        answer, how = talk.degrade(item, answer, other, rng)
    return {"category": kind.category, "question": question, "answer": answer, "good": how == "right", "how": how}


def conversation(rng: random.Random) -> dict:
    """One training conversation: messages and the loss weight of each."""
    dice = rng.random()
    messages: list[dict[str, str]] = []
    weights: list[int] = []

    def turn(question: str, answer: str, weight: int = 1) -> None:
        messages.extend([talk.user(question), talk.assistant(answer)])
        weights.extend([0, weight])

    if dice < 0.17:
        # One short token carries the whole lesson, so it weighs more.
        pair = judged(rng)
        turn(talk.judge_prompt(pair["question"], pair["answer"]), "5" if pair["good"] else "1", 4)
        return {"messages": messages, "weights": weights}
    if dice < 0.23:
        if rng.random() < 0.3:
            _, q, a = draw(any_kind(rng), rng, "seen")
            turn(q, a)
        before, question, answer = (talk.recall if rng.random() < 0.55 else talk.follow_up)(rng, False)
        messages.extend(before)
        weights.extend([0, 1])
        if rng.random() < 0.4:
            _, q, a = draw(any_kind(rng), rng, "seen")
            if before[1]["content"].startswith("Thank you"):
                turn(q, a)
        turn(question, answer)
    else:
        turns = 1 if dice < 0.83 else rng.randrange(2, 6)
        for _ in range(turns):
            _, q, a = draw(any_kind(rng), rng, "seen")
            turn(q, a)
    if rng.random() < 0.12:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM)})
        weights.insert(0, 0)
    return {"messages": messages, "weights": weights}


def plain(text: str) -> str:
    """A question without what does not change it."""
    return text.lower().strip(" ?.!")


def asked(lines: Path) -> set[str]:
    """Every text of a user in the training conversations."""
    with open(lines) as f:
        return {plain(m["content"]) for line in f for m in json.loads(line)["messages"] if m["role"] == "user"}


def heldout(rng: random.Random, per_kind: int, seen: set[str]) -> list[dict]:
    """The held-out questions: per kind `per_kind` new instances and as many new wordings, none of them in `seen`."""
    out, seen = [], set(seen)
    for kind in KINDS:
        for want in ("instance", "wording"):
            # Kinds without instances (small talk) have nothing of that sort to hold out.
            if want == "instance" and kind.draw(random.Random(0)).key == SEEN and all(kind.draw(random.Random(i)).key == SEEN for i in range(50)):
                continue
            count = 2 if kind.category == "small talk" else per_kind
            for _ in range(count * 5):
                item, question, answer = draw(kind, rng, want)
                if plain(question) in seen or count == 0:
                    continue
                seen.add(plain(question))
                count -= 1
                out.append({"category": kind.category, "kind": want, "name": kind.name, "messages": [talk.user(question)], "question": question, "answer": answer, "short": item.short})
    for make, name in ((talk.recall, "recall"), (talk.follow_up, "follow up")):
        for _ in range(2 * per_kind):
            before, question, answer = make(rng, True)
            out.append({"category": "several turns", "kind": "wording", "name": name, "messages": [*before, talk.user(question)], "question": question, "answer": answer, "short": answer})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder for train.jsonl")
    parser.add_argument("--conversations", type=int, default=800_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval", action="store_true", help="write eval/heldout.jsonl and eval/judged.jsonl instead")
    args = parser.parse_args()
    if args.eval:
        rng = random.Random(args.seed + 1_000_000)
        (HERE / "eval").mkdir(exist_ok=True)
        seen = asked(args.data / "train.jsonl")
        with open(HERE / "eval" / "heldout.jsonl", "w") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in heldout(rng, 6, seen))
        pairs: list[dict] = []
        while len(pairs) < 800:
            pair = judged(rng, "instance" if len(pairs) % 2 else "wording")
            if plain(pair["question"]) not in seen:
                pairs.append(pair)
        with open(HERE / "eval" / "judged.jsonl", "w") as f:
            f.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        return
    args.data.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    with open(args.data / "train.jsonl", "w") as f:
        for _ in range(args.conversations):
            f.write(json.dumps(conversation(rng), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

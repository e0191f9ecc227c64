"""Golden values for the Rust engine and judge, so that their tests need no torch.

    python make_goldens.py

writes `goldens/nano_logits.json`, `goldens/pico_logits.json`,
`goldens/cross_encoder.json` and `goldens/chat_template.json`. All values come
from Hugging Face transformers in f32, weights upcast from bf16; the lean
definitions in `llama.py` and `bert.py` must agree with it to 1e-3.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForSequenceClassification

import bert
import llama

HERE = Path(__file__).parent
TOP, GREEDY, TOLERANCE = 10, 20, 1e-3

CONVERSATIONS = [
    [{"role": "user", "content": "What is 47 + 38?"}],
    [{"role": "user", "content": "What is the capital of Mongolia?"}],
    [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Sort these numbers from smallest to largest: 42, 7, 93, 15"}],
    [{"role": "user", "content": "My name is Nina."}, {"role": "assistant", "content": "Thank you, I will remember that."}, {"role": "user", "content": "What is my name?"}],
    [{"role": "user", "content": "What is a volcano? Grüße, 你好 & <b>bold</b>\n\ttab"}],
]

PAIRS = [
    ("What is 47 + 38?", "47 + 38 = 85."),
    ("What is 47 + 38?", "47 + 38 = 75."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of France?", "The capital of France is Madrid."),
    ("Is 417 even or odd?", "417 is odd."),
    ("Is 417 even or odd?", "A baker is a person who makes bread and cakes."),
    ("How many minutes are in 3 hours?", "3 hours are"),
    ("Define the word planet.", "In general the answer is very interesting and long."),
    ("", ""),
]


def floats(values: torch.Tensor) -> list[float]:
    return [round(float(v), 6) for v in values]


@torch.no_grad()
def decoder(name: str) -> dict:
    """Top logits after some positions of each prompt, and greedy answers."""
    folder = HERE / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lean = llama.load(folder)
    prompts = []
    for messages in CONVERSATIONS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        logits = model(torch.tensor([ids])).logits[0]
        assert (logits - lean.logits(lean(torch.tensor([ids])))[0]).abs().max() < TOLERANCE, name
        positions = sorted({0, 1, len(ids) // 2, len(ids) - 1})
        top = []
        for p in positions:
            best = logits[p].topk(TOP)
            top.append({"position": p, "ids": best.indices.tolist(), "logits": floats(best.values)})
        greedy = list(ids)
        for _ in range(GREEDY):
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
        prompts.append({"messages": messages, "ids": ids, "top": top, "greedy": greedy[len(ids) :]})
    return {"about": f"Written by make_goldens.py: {name} in f32, weights upcast from bf16. `top`: largest logits that follow the token at `position`. `greedy`: 20 tokens, not stopped at the end token.", "model": name, "prompts": prompts}


@torch.no_grad()
def cross_encoder() -> dict:
    """Score logits of pairs, alone."""
    folder = HERE / "cross-encoder"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    lean = bert.load(folder)
    rows = []
    for question, answer in PAIRS:
        e = tokenizer(question, answer, return_tensors="pt")
        logit = float(model(**e).logits[0, 0])
        assert abs(logit - float(lean(e["input_ids"], e["token_type_ids"])[0])) < TOLERANCE
        rows.append({"question": question, "answer": answer, "ids": e["input_ids"][0].tolist(), "type_ids": e["token_type_ids"][0].tolist(), "logit": round(logit, 6)})
    return {"about": "Written by make_goldens.py: cross-encoder in f32, weights upcast from bf16. The sigmoid of `logit` is the probability that the answer is good.", "pairs": rows}


def chat_template() -> dict:
    """Rendered conversations and their ids."""
    tokenizer = AutoTokenizer.from_pretrained(HERE / "nano")
    rows = []
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            rows.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": tokenizer(text, add_special_tokens=False).input_ids})
    return {"about": "Written by make_goldens.py: the chat template of nano and pico, rendered and tokenised without further special tokens.", "conversations": rows}


def main() -> None:
    torch.set_num_threads(1)
    (HERE / "goldens").mkdir(exist_ok=True)
    for file, make in (("nano_logits", lambda: decoder("nano")), ("pico_logits", lambda: decoder("pico")), ("cross_encoder", cross_encoder), ("chat_template", chat_template)):
        (HERE / "goldens" / f"{file}.json").write_text(json.dumps(make(), indent=1, ensure_ascii=False) + "\n")
        print(file)


if __name__ == "__main__":
    main()

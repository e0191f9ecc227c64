"""The openai Python client against a running network: exact answers to held-out questions, streamed and not, from 16
clients at once; the same seed gives the same tokens, alone and under load; answers held to a JSON schema; prompts echoed
with their logprobs.

Usage: openai_client.py ENDPOINT API_KEY MODEL HELDOUT.jsonl [QUESTIONS]
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, OpenAI

CLIENTS = 16
# The served model must answer at least this share of questions that it never saw exactly, as models/eval.py counts;
# it is known to reach 81.8 % over all of them.
RIGHT_MIN = 0.75


def questions(path, count):
    """A mixed selection: every n-th of the file, which is ordered by category."""
    with open(path, encoding="utf-8") as lines:
        everything = [json.loads(line) for line in lines]
    step = max(1, len(everything) // count)
    return everything[::step][:count]


def whole(client, model, messages, **more):
    """One answer, not streamed."""
    answer = client.chat.completions.create(model=model, messages=messages, max_completion_tokens=64, **more)
    assert answer.choices[0].finish_reason in ("stop", "length"), answer
    assert answer.usage.completion_tokens > 0
    assert answer.model_extra["polylink"]["receipt"], "no receipt in the answer"
    return answer.choices[0].message.content


def streamed(client, model, messages, **more):
    """One answer, streamed: the receipt is on the chunk that has the finish_reason."""
    text, receipt, usage = "", None, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        model=model, messages=messages, max_completion_tokens=64, stream=True, stream_options=options, **more
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                receipt = (chunk.model_extra or {}).get("polylink", {}).get("receipt")
        usage = chunk.usage or usage
    assert receipt, "no receipt with the finish_reason"
    assert usage and usage.completion_tokens > 0, "no usage"
    return text


def main():
    """Runs all checks; an AssertionError is a failure."""
    endpoint, key, model, path = sys.argv[1:5]
    count = int(sys.argv[5]) if len(sys.argv) > 5 else 232
    client = OpenAI(base_url=endpoint, api_key=key, timeout=120, max_retries=4)
    assert model in [m.id for m in client.models.list()], "the model is not listed"

    seeded = [{"role": "user", "content": "Tell me something about the number 7."}]
    alone = whole(client, model, seeded, seed=42, temperature=1.0)
    asked = questions(path, count)
    right, by_group, lock = [0], {}, threading.Lock()
    start = time.time()

    def one(numbered):
        number, question = numbered
        call = streamed if number % 2 else whole
        text = call(client, model, question["messages"], temperature=0)
        good = text == question["answer"]
        with lock:
            right[0] += good
            for group in (question["category"], f"new {question['kind']}s", call.__name__):
                seen = by_group.setdefault(group, [0, 0])
                seen[0] += good
                seen[1] += 1
        if number % 24 == 0:
            assert streamed(client, model, seeded, seed=42, temperature=1.0) == alone, "the seed's tokens changed under load"

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, enumerate(asked)))
    share = right[0] / len(asked)
    table = ", ".join(f"{name} {good}/{seen}" for name, (good, seen) in sorted(by_group.items()))
    print(f"openai client: {right[0]} of {len(asked)} held-out answers exact ({share:.0%}) from {CLIENTS} clients "
          f"in {time.time() - start:.1f} s: {table}")
    assert {"new instances", "new wordings", "whole", "streamed"} <= by_group.keys(), "not every kind was asked"
    assert share >= RIGHT_MIN, f"{share:.0%} exact, at least {RIGHT_MIN:.0%} expected"
    assert whole(client, model, seeded, seed=42, temperature=1.0) == alone

    number = {"type": "object", "properties": {"number": {"type": "integer", "minimum": 0, "maximum": 99}, "odd": {"type": "boolean"}},
              "required": ["number", "odd"], "additionalProperties": False}
    schema = {"type": "json_schema", "json_schema": {"name": "number", "strict": True, "schema": number}}
    for call in (whole, streamed):
        said = json.loads(call(client, model, seeded, seed=1, temperature=1.0, response_format=schema))
        assert list(said) == ["number", "odd"] and 0 <= said["number"] <= 99 and isinstance(said["odd"], bool), said
    print("openai client: an answer has the shape of its JSON schema, streamed and not")

    prompt = "What is 2 plus 3?"
    scored = client.completions.create(model=model, prompt=prompt, max_tokens=4, echo=True, logprobs=2, seed=1)
    said, logprobs = scored.choices[0].text, scored.choices[0].logprobs
    assert said.startswith(prompt) and logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None, scored
    assert all(logprob <= 0 for logprob in logprobs.token_logprobs[1:]), logprobs
    assert all(said.startswith(token, at) for token, at in zip(logprobs.tokens, logprobs.text_offset) if at < len(prompt)), logprobs
    only = client.completions.create(model=model, prompt=prompt, max_tokens=0, echo=True, logprobs=2)
    told = len(only.choices[0].logprobs.tokens)
    assert only.choices[0].text == prompt and told == only.usage.prompt_tokens, only
    assert only.choices[0].logprobs.token_logprobs == logprobs.token_logprobs[:told], "the same prompt, other logprobs"
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=1, extra_body={"prompt_logprobs": 1})
    mapped = answer.choices[0].model_extra["prompt_logprobs"]
    assert mapped[0] is None and [max(at[t]["logprob"] for t in at) for at in mapped[1:]] == [
        max(at.values()) for at in logprobs.top_logprobs[1:told]], mapped
    print("openai client: a prompt is echoed with its logprobs, with and without an answer behind it")

    for what, expected, call in (
        ("wrong key", AuthenticationError, lambda: whole(OpenAI(base_url=endpoint, api_key="sk-polylink-no"), model, seeded)),
        ("unknown model", NotFoundError, lambda: whole(client, "org/none", seeded)),
        ("tools", BadRequestError, lambda: whole(client, model, seeded, tools=[{"type": "function", "function": {"name": "f"}}])),
        ("response format", BadRequestError, lambda: whole(client, model, seeded, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}})),
        ("logprobs", BadRequestError, lambda: client.completions.create(model=model, prompt="x", echo=True, logprobs=21)),
        ("temperature", BadRequestError, lambda: whole(client, model, seeded, temperature=5)),
    ):
        try:
            call()
        except APIStatusError as error:
            assert isinstance(error, expected), f"{what}: {error!r}"
            continue
        raise AssertionError(f"{what} was not refused")
    print("openai client: bad input is refused by the client's own error classes")


if __name__ == "__main__":
    main()

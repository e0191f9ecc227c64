"""Hugging Face transformers as a peer: answers loads on stdin with the seconds that they took.

    python transformers_worker.py FOLDER THREADS

A line in: {"streams", "prompt_tokens", "completion_tokens"}; a line out: {"seconds", "prompt_tokens",
"completion_tokens"}, the last two for all streams together and counted, not copied; or {"refused": why}. All streams
start together as one batch, as nothing here schedules: what a server around it could only be slower than.

bf16 weights, scaled-dot-product attention, a cache that grows, logits of the last position only, greedy.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache

# What the activations of a prefill may need at once.
PROMPT_TOKENS_MAX = 32_768


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        load = json.loads(line)
        streams, length, wanted = load["streams"], load["prompt_tokens"], load["completion_tokens"]
        if streams * length > PROMPT_TOKENS_MAX:
            reason = f"{streams} x {length} prompt tokens in one batch, at most {PROMPT_TOKENS_MAX}"
            print(json.dumps({"refused": reason}), flush=True)
            continue
        tokens = torch.randint(2, model.config.vocab_size, (streams, length), generator=generator)
        begun = time.perf_counter()
        cache = DynamicCache(config=model.config)
        drawn = [tokens]
        with torch.inference_mode():
            while len(drawn) <= wanted:
                logits = model(input_ids=drawn[-1], cache=cache, use_cache=True, logits_to_keep=1).logits
                drawn.append(logits[:, -1].argmax(-1, keepdim=True))
            completed = torch.cat(drawn[1:], dim=1)
        seconds = time.perf_counter() - begun
        del cache
        out = {"seconds": seconds, "prompt_tokens": tokens.numel(), "completion_tokens": completed.numel()}
        print(json.dumps(out), flush=True)


main()

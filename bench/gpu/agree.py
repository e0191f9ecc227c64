"""Agreement, over HTTP and on one model: the exact profiles on the GPU give the CPU's tokens and logprobs to the last bit,
and the profile of tensor cores is as near to f32 as transformers in bf16 is.

    python agree.py POLYLINK FOLDER OUT.json [--backends cuda,cpu]

Without torch and transformers only ours are compared.
"""

import argparse
import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

try:
    import torch
    import transformers
except ImportError:
    torch = None

PROMPTS, PROMPT_TOKENS, COMPLETION_TOKENS = 4, 200, 32
START_SECONDS = 120
# Mean error of a logprob against f32: at most so many times that of transformers in bf16.
RATIO_MAX = 1.5
# Of f32 against f32.
EXACT_ERROR_MAX = 1e-3
PROFILES = {
    "f32": ["--dtype", "f32"],
    "f32, cache of 8 bits": ["--dtype", "f32", "--kv-dtype", "int8"],
    "f32, cache of e4m3": ["--dtype", "f32", "--kv-dtype", "fp8"],
    "q8_0": ["--quantize", "q8_0"],
    "q4_0": ["--quantize", "q4_0"],
    "sm90-bf16": ["--dtype", "sm90-bf16", "--kv-dtype", "bf16"],
}


def prompts(vocabulary: int) -> list[list[int]]:
    """Fixed ids, spread over the vocabulary."""
    state, ids = 1, []
    for _ in range(PROMPTS * PROMPT_TOKENS):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append(2 + (state >> 33) % (vocabulary - 2))
    return [ids[i * PROMPT_TOKENS :][:PROMPT_TOKENS] for i in range(PROMPTS)]


class Server:
    """`polylink serve --local` of one profile on one backend."""

    def __init__(self, program: str, folder: Path, backend: str, profile: str, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.log = log
        flags = ["--backend", backend, "--kv-cache-mib", "512", "--max-running", "8", *PROFILES[profile]]
        command = [program, "serve", "--local", "--model", str(folder), "--listen", f"127.0.0.1:{port}", *flags]
        self.process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)

    def ask(self, path: str, body: dict | None = None) -> dict:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"{}")

    def ready(self) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < START_SECONDS:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.base + "/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError("it did not start: " + self.log.read_text(errors="replace")[-600:].strip())

    def answer(self, prompt: list[int]) -> dict:
        body = {"model": self.ask("/v1/models")["data"][0]["id"], "prompt": prompt, "temperature": 0}
        body |= {"max_tokens": COMPLETION_TOKENS, "ignore_eos": True, "prompt_logprobs": 0, "return_token_ids": True}
        body |= {"logprobs": 1}
        choice = self.ask("/v1/completions", body)["choices"][0]
        told = choice["prompt_logprobs"][1:]
        return {
            "tokens": choice["token_ids"],
            "prompt": [told[i][str(prompt[i + 1])]["logprob"] for i in range(len(told))],
            "drawn": choice["logprobs"]["token_logprobs"],
        }


def ours(program: str, folder: Path, backend: str, profile: str, asked: list[list[int]], out: Path) -> list[dict]:
    """Answers of a server that is started for it, the prompts one after the other and then all at once: the same."""
    name = f"{backend}-{profile.split(',')[0]}-{len(profile)}"
    server = Server(program, folder, backend, profile, out.parent / f"serve-{name}.log")
    try:
        server.ready()
        alone = [server.answer(prompt) for prompt in asked]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(server.answer, asked))
        if alone != together:
            raise RuntimeError("answers in company differ from those alone")
        return alone
    finally:
        server.process.kill()
        server.process.wait()


def peer(folder: Path, asked: list[list[int]], dtype) -> list[list[float]]:
    """Logprobs of the prompts' tokens by transformers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    told = []
    with torch.inference_mode():
        for prompt in asked:
            ids = torch.tensor([prompt], device=device)
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
            told.append(logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist())
    return told


def errors(found: list[list[float]], right: list[list[float]]) -> tuple[float, float]:
    """Mean and largest difference."""
    differences = [abs(a - b) for x, y in zip(found, right, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(differences) / len(differences), max(differences)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backends", default="cuda,cpu", help="the first is judged by the second")
    parser.add_argument("--profiles", default=",".join(name for name in PROFILES if "," not in name))
    given = parser.parse_args()
    judged, judge = given.backends.split(",")
    profiles = list(PROFILES) if given.profiles == "all" else given.profiles.split(",")
    asked = prompts(json.loads((given.folder / "config.json").read_text())["vocab_size"])
    jobs = [(backend, profile) for profile in profiles for backend in (judged, judge) if (backend, profile) != (judge, "sm90-bf16")]
    answers: dict = {}
    failed = []
    # The GPU's servers beside the CPU's, which share its cores.
    with concurrent.futures.ThreadPoolExecutor(2 if (os.cpu_count() or 1) > 4 else 1) as pool:
        under_way = {job: pool.submit(ours, given.program, given.folder, *job, asked, given.out) for job in jobs}
        for job, answer in under_way.items():
            try:
                answers[job] = answer.result()
                print(f"  {job[0]} {job[1]}: answered", flush=True)
            except Exception as error:  # a server that fails is a line of the report
                failed.append(f"{job[0]} {job[1]}: {type(error).__name__}: {error}"[:700])
                print(f"  FAILED {failed[-1]}", flush=True)
    found: dict = {"exact": {}, "failed": failed}
    for profile in profiles:
        here, there = answers.get((judged, profile)), answers.get((judge, profile))
        if profile == "sm90-bf16" or here is None or there is None:
            continue
        same = here == there
        found["exact"][profile] = same
        print(f"  {profile}: {judged} and {judge} {'give the same bits' if same else 'DIFFER'}", flush=True)
        if not same:
            mean, largest = errors([a["prompt"] for a in here], [a["prompt"] for a in there])
            equal = sum(a["tokens"] == b["tokens"] for a, b in zip(here, there, strict=True))
            failed.append(f"{profile}: logprobs differ by {mean:.2e}, at most {largest:.2e}; {equal} of {PROMPTS} answers are equal")
            print(f"    {failed[-1]}", flush=True)
    if torch is None:
        print("  no torch or transformers: not compared with them", flush=True)
    else:
        right = peer(given.folder, asked, torch.float32)
        theirs = errors(peer(given.folder, asked, torch.bfloat16), right)
        found["transformers bf16"] = theirs
        print(f"  logprobs against transformers in f32: transformers in bf16 off by {theirs[0]:.2e}, at most {theirs[1]:.2e}")
        for profile in ("f32", "sm90-bf16"):
            if (judged, profile) not in answers:
                continue
            off = errors([answer["prompt"] for answer in answers[judged, profile]], right)
            found[f"{judged} {profile}"] = off
            print(f"    {judged} {profile} off by {off[0]:.2e}, at most {off[1]:.2e}", flush=True)
            if profile == "f32" and off[1] > EXACT_ERROR_MAX or off[0] > RATIO_MAX * theirs[0]:
                failed.append(f"{profile} is further from f32 than it may be")
                print(f"    FAILED: {failed[-1]}", flush=True)
        exact, tensor = answers.get((judged, "f32")), answers.get((judged, "sm90-bf16"))
        if exact and tensor:
            equal = [next((i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"], strict=True)) if x != y), COMPLETION_TOKENS) for a, b in zip(exact, tensor, strict=True)]
            found["greedy tokens as in f32"] = equal
            print(f"  sm90-bf16: greedy tokens as in f32 until they part: {equal} of {COMPLETION_TOKENS}", flush=True)
    given.out.write_text(json.dumps(found, indent=1))
    return 1 if failed else 0


sys.exit(main())

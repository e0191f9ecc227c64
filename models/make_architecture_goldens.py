"""Golden values of every architecture that the engine runs, so that its tests need no torch.

    python make_architecture_goldens.py [CASE ...]

writes `goldens/architectures/CASE.json`: for tiny models with made-up weights, logits of Hugging Face transformers in
f64, the errors of transformers' own f32 and bf16 against them, and 64 greedy tokens (equal in f32 and f64).

Weights are integers times a power of two, exact in f32, bf16 and f16, from a generator that `inference-server`'s tests
have as well (`tests/engine/tiny.rs`): nothing large is committed. transformers computes norms, softmax and rotary
tables in f32 whatever the model's type; for f64 that is undone here (`doubled`).
"""

import contextlib
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from architecture_cases import CASES, VOCABULARY

HERE = Path(__file__).parent
PROMPT, GREEDY, STRIDE = 40, 64, 16
ROWS = range(3, PROMPT + GREEDY - 1, 6)


def integers(name: str, count: int) -> np.ndarray:
    """-255..255 from splitmix64 at FNV-1a(name) + 1, 2, ... steps."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    x = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(32)) % np.uint64(511)).astype(np.int64) - 255


def recipe(name: str, config: dict) -> tuple[int, int, int]:
    """A tensor's values: base + (integer >> drop) x 2^exponent."""
    gemma = config["model_type"].startswith("gemma")
    if name.endswith("norm.weight"):
        return (0 if gemma else 1, 3, -7)
    if name == "model.embed_tokens.weight":
        # A tied table is small, so that a token does not draw itself.
        return (0, 0, -12 if config.get("tie_word_embeddings", gemma) else -8)
    if re.search(r"(mlp|moe)\.gate\.weight", name):
        return (0, 0, -9)
    return (0, 0, -10)


def tensor(name: str, shape: list[int], config: dict) -> torch.Tensor:
    base, drop, exponent = recipe(name, config)
    values = base + (integers(name, int(np.prod(shape))) >> drop) * 2.0**exponent
    made = torch.from_numpy(values).reshape(shape)
    assert (made.bfloat16().double() == made).all() and (made.half().double() == made).all(), name
    return made.bfloat16()


def names(config: dict) -> dict[str, list[int]]:
    """Names and shapes of the checkpoint, as transformers itself saves it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


@contextlib.contextmanager
def doubled():
    """Within it, what asks for f32 gets f64."""
    kept = (torch.float32, torch.float, torch.Tensor.float)
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def run(folder: str, dtype: torch.dtype, prompt: list[int], forced: list[int] | None) -> tuple[torch.Tensor, list[int]]:
    """Logits of all rows, and the tokens drawn: the prompt at once, then one token after the other from the cache.

    Where LongRoPE goes over to its long factors the cache is computed anew, as `generate` does.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    out = model(torch.tensor([prompt]), use_cache=True)
    rows, drawn = [out.logits[0]], []
    for step in range(GREEDY):
        token = int(rows[-1][-1].argmax()) if forced is None else forced[step]
        drawn.append(token)
        if step + 1 < GREEDY:
            rope = model.config.rope_parameters
            if PROMPT + step == rope.get("original_max_position_embeddings") and "short_factor" in rope:
                out = model(torch.tensor([prompt + drawn]), use_cache=True)
            else:
                position = torch.tensor([[PROMPT + step]])
                out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, position_ids=position, use_cache=True)
            rows.append(out.logits[0, -1:])
    return torch.cat(rows).double(), drawn


def compact(shapes: dict[str, list[int]], config: dict) -> list:
    """Tensors as [name, shape, recipe]; * stands for every layer, @ for every expert."""
    layers, groups = config["num_hidden_layers"], {}
    for name, shape in shapes.items():
        parts = re.fullmatch(r"(model\.layers\.)(\d+)(\..*)", name)
        pattern = (parts[1] + "*" + parts[3]) if parts else name
        expert = re.sub(r"experts\.\d+\.", "experts.@.", pattern)
        groups.setdefault((expert, tuple(shape), recipe(name, config)), []).append(name)
    rows = []
    for (pattern, shape, how), members in groups.items():
        found = sorted({int(re.search(r"layers\.(\d+)\.", name)[1]) for name in members if "*" in pattern})
        patterns = [pattern] if len(found) in (0, layers) else [pattern.replace("*", str(layer)) for layer in found]
        rows += [[p, list(shape), *how] for p in patterns]
    return rows


def case(number: int, name: str, config: dict) -> dict:
    shapes = names(config)
    prompt = [(i * 37 + i * i * 3 + number * 11) % VOCABULARY for i in range(PROMPT)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        tensors = {key: tensor(key, shape, config) for key, shape in shapes.items()}
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        f32, greedy = run(folder, torch.float32, prompt, None)
        bf16, _ = run(folder, torch.bfloat16, prompt, greedy)
        with doubled():
            f64, greedy64 = run(folder, torch.float64, prompt, None)
    assert f64.dtype == torch.float64 and greedy == greedy64, f"{name}: f32 and f64 draw other tokens"
    best = f64[PROMPT - 1 :].topk(2).values
    error, margin = (f32 - f64).abs().max(), (best[:, 0] - best[:, 1]).min()
    assert error < 1e-3 and margin > 20 * error, f"{name}: margin {margin:.1e}, error {error:.1e}"
    assert len(set(greedy)) >= 8, f"{name}: only {len(set(greedy))} different tokens"
    logits = f64[list(ROWS)][:, ::STRIDE]

    def errors(found: torch.Tensor) -> dict:
        difference = found[list(ROWS)][:, ::STRIDE] - logits
        rows = difference.square().mean(1).sqrt()
        values = {"rms": rows.square().mean().sqrt(), "max": difference.abs().max(), "median": rows.median()}
        return {key: float(f"{value:.4e}") for key, value in values.items()}

    print(f"{name}: f32 {errors(f32)}, bf16 {errors(bf16)}, margin {margin:.1e}, {len(set(greedy))} tokens, spread {f64.std():.2f}")
    return {
        "about": "Written by make_architecture_goldens.py. `logits`: transformers in f64, of `rows`, every so many tokens.",
        "config": config,
        "tensors": compact(shapes, config),
        "prompt": prompt,
        "greedy": greedy,
        "rows": list(ROWS),
        "stride": STRIDE,
        "logits": [[round(value, 9) for value in row] for row in logits.tolist()],
        "transformers": {"f32": errors(f32), "bf16": errors(bf16)},
    }


def main() -> None:
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    folder = HERE / "goldens" / "architectures"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, config) in enumerate(CASES.items()):
        if not sys.argv[1:] or name in sys.argv[1:]:
            text = json.dumps(case(number, name, config), separators=(",", ":"))
            # A line per entry and per row of logits.
            text = re.sub(r'("(?:about|config|tensors|prompt|greedy|rows|stride|logits|transformers)":)', r"\n\1", text)
            (folder / f"{name}.json").write_text(text.replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()

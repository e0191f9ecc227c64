"""Models with random weights, made on the GPU in seconds, so that nothing large travels: config, one safetensors file in
bf16, and the tokenizer of another folder (ids beyond its vocabulary have no text).

    python models.py SHAPE FOLDER [--tokenizer FOLDER] [--seed N]        shapes: 8b 7b 1b 0.5b tiny

Speed does not depend on what the weights are. The same seed gives the same bytes on the same kind of GPU.
"""

import argparse
import concurrent.futures
import json
import math
import os
import shutil
import struct
import sys
import time
from pathlib import Path

try:
    import torch
except ImportError:
    print("  no torch here: models are not made")
    sys.exit(77)

LLAMA, QWEN = "LlamaForCausalLM", "Qwen2ForCausalLM"
# Of Llama 3.1 8B, Qwen2.5 7B, Llama 3.2 1B, Qwen2.5 0.5B, and one for tests of this script.
# architecture, layers, hidden, heads, kv heads, head width, mlp, vocabulary, tied, rope base
SHAPES = {
    "8b": (LLAMA, 32, 4096, 32, 8, 128, 14_336, 128_256, False, 500_000.0),
    "7b": (QWEN, 28, 3584, 28, 4, 128, 18_944, 152_064, False, 1_000_000.0),
    "1b": (LLAMA, 16, 2048, 32, 8, 64, 8192, 128_256, True, 500_000.0),
    "0.5b": (QWEN, 24, 896, 14, 2, 64, 4864, 151_936, True, 1_000_000.0),
    "tiny": (QWEN, 2, 128, 4, 2, 32, 256, 2048, True, 10_000.0),
}
DEVIATION = 0.02
WRITERS = 8
# Values that are drawn at once.
PIECE = 1 << 27


def tensors(shape: tuple) -> list[tuple[str, tuple[int, ...]]]:
    architecture, layers, hidden, heads, kv_heads, head, mlp, vocabulary, tied, _ = shape
    all_of_them = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(layers):
        of_layer = [
            ("input_layernorm.weight", (hidden,)),
            ("self_attn.q_proj.weight", (heads * head, hidden)),
            ("self_attn.k_proj.weight", (kv_heads * head, hidden)),
            ("self_attn.v_proj.weight", (kv_heads * head, hidden)),
            ("self_attn.o_proj.weight", (hidden, heads * head)),
            ("post_attention_layernorm.weight", (hidden,)),
            ("mlp.gate_proj.weight", (mlp, hidden)),
            ("mlp.up_proj.weight", (mlp, hidden)),
            ("mlp.down_proj.weight", (hidden, mlp)),
        ]
        if architecture == QWEN:
            biases = [("q", heads), ("k", kv_heads), ("v", kv_heads)]
            of_layer += [(f"self_attn.{name}_proj.bias", (count * head,)) for name, count in biases]
        all_of_them += [(f"model.layers.{layer}.{name}", size) for name, size in of_layer]
    all_of_them.append(("model.norm.weight", (hidden,)))
    if not tied:
        all_of_them.append(("lm_head.weight", (vocabulary, hidden)))
    return all_of_them


def config(shape: tuple) -> dict:
    architecture, layers, hidden, heads, kv_heads, head, mlp, vocabulary, tied, base = shape
    return {
        "architectures": [architecture],
        "model_type": "llama" if architecture == LLAMA else "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6 if architecture == QWEN else 1e-5,
        "rope_theta": base,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def values(name: str, count: int, generator: torch.Generator) -> torch.Tensor:
    """A piece of a tensor, in the host's memory. Norms scale by 1."""
    if "norm" in name:
        return torch.ones(count, dtype=torch.bfloat16)
    device = generator.device
    drawn = torch.empty(count, dtype=torch.bfloat16, device=device).normal_(0.0, DEVIATION, generator=generator)
    return drawn.cpu()


def write(shape: tuple, seed: int, folder: Path) -> int:
    """Writes the weights; their bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    header, at = {}, 0
    for name, size in tensors(shape):
        end = at + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    file = os.open(folder / "model.safetensors", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.pwrite(file, struct.pack("<Q", len(text)) + text, 0)

    def store(drawn: torch.Tensor, offset: int) -> None:
        data = memoryview(drawn.view(torch.uint8).numpy())
        while data:
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        under_way = []
        for name, size in tensors(shape):
            offset, left = begin + header[name]["data_offsets"][0], math.prod(size)
            while left:
                count = min(left, PIECE)
                under_way.append(pool.submit(store, values(name, count, generator), offset))
                offset, left = offset + 2 * count, left - count
                # No more in memory than the writers are busy with.
                while len(under_way) > 2 * WRITERS:
                    under_way.pop(0).result()
        for writer in under_way:
            writer.result()
    os.close(file)
    return at


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path(__file__).parents[2] / "models" / "nano")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if (given.folder / "config.json").exists():
        print(f"  {given.folder} is there")
        return 0
    needed = 2 * sum(math.prod(size) for _, size in tensors(SHAPES[given.shape]))
    given.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(given.folder).free
    if free < needed * 1.05:
        print(f"  {given.shape} takes {needed >> 20} MiB, {given.folder} has {free >> 20} MiB free")
        return 77
    begun = time.perf_counter()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(given.tokenizer / name, given.folder / name)
    written = write(SHAPES[given.shape], given.seed, given.folder)
    # Last, so that a folder with a config is whole.
    (given.folder / "config.json").write_text(json.dumps(config(SHAPES[given.shape]), indent=1) + "\n")
    took = time.perf_counter() - begun
    print(f"  {given.folder}: {written >> 20} MiB in {took:.1f} s", flush=True)
    return 0


sys.exit(main())

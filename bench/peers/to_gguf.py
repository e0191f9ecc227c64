"""A Hugging Face folder of a Llama model as GGUF files, so that llama.cpp runs the very weights that we run.

    python to_gguf.py FOLDER TYPE=FILE…        types: bf16, q8_0, q4_0

Every matrix gets the type, embedding and output head too, as our own quantisation does. The tokenizer is a stand-in with
the right number of tokens: prompts are sent as token ids, and what comes back is counted, not read.
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(path: Path):
    """Name and bf16 values (as u16) of each tensor of a safetensors file, read one at a time."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{path}: {name} is {entry['dtype']}: only bf16 is converted")
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            yield name, np.frombuffer(file.read(end - start), np.uint16).reshape(entry["shape"])


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of llama.cpp's rotation, which turns neighbours and not halves."""
    rows, inputs = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, inputs)


def floats(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)


def target(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return OUTSIDE[stem] + ".weight"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    if part not in NAMES:
        raise SystemExit(f"{name} is not a tensor of a Llama model without biases")
    return f"blk.{layer}.{NAMES[part]}.weight"


def add_vocabulary(writer: gguf.GGUFWriter, size: int, begin: int, end: int) -> None:
    texts = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    texts += [b"w%d" % number for number in range(len(texts), size)]
    kinds += [gguf.TokenType.NORMAL] * (size - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts[:size])
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types([int(kind) for kind in kinds[:size]])
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def convert(folder: Path, kind: str, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_name(folder.name)
    writer.add_file_type(TYPES[kind][1])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_vocabulary(writer, config["vocab_size"], config.get("bos_token_id", 1), config.get("eos_token_id", 2))
    for name, values in tensors(folder / "model.safetensors"):
        if name.endswith("q_proj.weight"):
            values = interleaved(values, heads)
        if name.endswith("k_proj.weight"):
            values = interleaved(values, kv_heads)
        if values.ndim == 1:
            writer.add_tensor(target(name), floats(values))
        elif kind == "bf16":
            writer.add_tensor(target(name), values.view(np.uint8), raw_dtype=TYPES[kind][0])
        else:
            writer.add_tensor(target(name), quantize(floats(values), TYPES[kind][0]), raw_dtype=TYPES[kind][0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(out)


def main() -> None:
    folder = Path(sys.argv[1])
    for wanted in sys.argv[2:]:
        kind, _, out = wanted.partition("=")
        if kind not in TYPES or not out:
            raise SystemExit(f"{wanted}: TYPE=FILE is expected, with a type of {', '.join(TYPES)}")
        convert(folder, kind, Path(out))
        print(f"{out}: {kind}, {Path(out).stat().st_size} bytes", flush=True)


main()

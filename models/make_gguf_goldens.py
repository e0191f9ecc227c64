"""Golden values for the reader of GGUF files: what llama.cpp makes of the same files.

    python make_gguf_goldens.py

writes `goldens/gguf_logits.json`, `goldens/gguf_architectures.json` and `goldens/gguf_tokenizers.json`. It needs `numpy`, `gguf`, `llama-cpp-python`,
`tokenizers` and `sentencepiece`; the tests need none of them. Models are random and not kept: the tests make the same
files byte for byte (their SHA-256 is in the goldens) from a generator that is a few lines in both languages.

Logits: of each type of weights, those of llama.cpp, and those of the dequantised weights in f64. Both implementations
round activations to 8 bits for quantised weights, each in its own way; a test holds ours to an error that is at most
1.5 times that of llama.cpp.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import struct
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import sentencepiece
import tokenizers

HERE = Path(__file__).parent
MASK = (1 << 64) - 1

# ggml's numbers, values of a block, bytes of a block.
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "BF16": (30, 1, 2)}
# Where a block's f16 scales lie, and their magnitudes as powers of a half.
SCALES = {"Q8_0": [(0, 10)], "Q4_0": [(0, 6)], "Q4_K": [(0, 12), (2, 9)], "Q5_K": [(0, 13), (2, 9)], "Q6_K": [(208, 14)]}


# ---- files ---------------------------------------------------------------------------------------------------------


def random_bytes(name: str, count: int) -> np.ndarray:
    """splitmix64 from the FNV-1a of the name; its words, little-endian, one after the other."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 & MASK
    steps = np.arange(1, (count + 7) // 8 + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = np.uint64(state) + steps * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z.astype("<u8").view(np.uint8)[:count].copy()


def tensor(name: str, kind: str, shape: list[int]) -> bytes:
    """Random values of about a sixteenth; norms lie in 1 to 1.125, biases and RoPE factors are told apart by their names."""
    _, values, size = TYPES[kind]
    data = random_bytes(name, int(np.prod(shape)) // values * size)
    if kind == "F32":
        words = data.view("<u4")
        if "norm" in name:
            words[:] = (words & 0xFFFFF) | 127 << 23
        elif "rope" in name:
            words[:] = (words & 0x7FFFFF) | 128 << 23
        else:
            words[:] = (words & 0x807FFFFF) | 122 << 23
    elif kind == "F16":
        words = data.view("<u2")
        words[:] = (words & 0x83FF) | 10 << 10
    elif kind == "BF16":
        words = data.view("<u2")
        words[:] = (words & 0x807F) | 122 << 7
    else:
        blocks = data.reshape(-1, size)
        if kind == "Q8_0":
            blocks[blocks == 0x80] = 0  # a quantiser makes −127 at the least
        for at, power in SCALES[kind]:
            bits = (15 - power) << 10 | blocks[:, at].astype(np.uint16) << 2
            blocks[:, at : at + 2] = bits.astype("<u2")[:, None].view(np.uint8)
    return data.tobytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(v) -> bytes:
    """Type and value: flags, u32, f32, texts and lists of i32, f32 or texts."""
    if isinstance(v, bool):
        return struct.pack("<IB", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    kind, one = (8, text) if isinstance(v[0], str) else (6, lambda x: struct.pack("<f", x)) if isinstance(v[0], float) else (5, lambda x: struct.pack("<i", x))
    return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(map(one, v))


def write(path: Path, pairs: dict, tensors: list[tuple[str, str, list[int]]]) -> str:
    """Writes a GGUF; returns its SHA-256."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    out += b"".join(text(key) + value(v) for key, v in pairs.items())
    data = b""
    for name, kind, shape in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        out += struct.pack("<IQ", TYPES[kind][0], len(data))
        data += tensor(name, kind, shape)
        data += bytes(-len(data) % 32)
    out += bytes(-len(out) % 32)
    path.write_bytes(out + data)
    return hashlib.sha256(out + data).hexdigest()


def byte_texts() -> list[str]:
    """GPT-2's characters for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(rest)) for b in range(256)]


# ---- logits --------------------------------------------------------------------------------------------------------

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY = 256, 2, 4, 2, 64, 512, 272
PROMPT = [(7 * i * i + 31 * i + 5) % VOCABULARY for i in range(24)]
POSITIONS = [4, 23]


def llama_pairs(arch: str) -> dict:
    tokens = byte_texts() + ["ab"] + [f"<|{i}|>" for i in range(15)]
    return {
        "general.architecture": arch,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.block_count": LAYERS,
        f"{arch}.feed_forward_length": MLP,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3] * 15,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.bos_token_id": 257,
    }


def llama_tensors(kind: str, mixed: bool) -> list[tuple[str, str, list[int]]]:
    finer = "Q6_K" if mixed else kind
    all_ = [("token_embd.weight", kind, [VOCABULARY, HIDDEN]), ("output.weight", finer, [VOCABULARY, HIDDEN]), ("output_norm.weight", "F32", [HIDDEN])]
    for i in range(LAYERS):
        all_ += [
            (f"blk.{i}.attn_norm.weight", "F32", [HIDDEN]),
            (f"blk.{i}.attn_q.weight", kind, [HEADS * HEAD_DIM, HIDDEN]),
            (f"blk.{i}.attn_k.weight", kind, [KV_HEADS * HEAD_DIM, HIDDEN]),
            (f"blk.{i}.attn_v.weight", finer, [KV_HEADS * HEAD_DIM, HIDDEN]),
            (f"blk.{i}.attn_output.weight", kind, [HIDDEN, HEADS * HEAD_DIM]),
            (f"blk.{i}.ffn_norm.weight", "F32", [HIDDEN]),
            (f"blk.{i}.ffn_gate.weight", kind, [MLP, HIDDEN]),
            (f"blk.{i}.ffn_up.weight", kind, [MLP, HIDDEN]),
            (f"blk.{i}.ffn_down.weight", finer, [HIDDEN, MLP]),
        ]
    return all_


def exact_logits(path: Path) -> np.ndarray:
    """All positions' logits in f64 from the dequantised weights."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}

    def w(name: str) -> np.ndarray:
        t = tensors[name + ".weight"]
        return np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float64).reshape([int(n) for n in reversed(t.shape)])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float64(np.float32(1e-5))) * w(name)

    n = len(PROMPT)
    frequency = 10000.0 ** (-2.0 * np.arange(HEAD_DIM // 2) / HEAD_DIM)
    angle = np.arange(n)[:, None] * frequency

    def rope(x: np.ndarray, heads: int) -> np.ndarray:
        x = x.reshape(n, heads, HEAD_DIM // 2, 2)  # neighbours turn together
        sine, cosine = np.sin(angle)[:, None], np.cos(angle)[:, None]
        return np.stack([x[..., 0] * cosine - x[..., 1] * sine, x[..., 1] * cosine + x[..., 0] * sine], -1).reshape(n, heads, HEAD_DIM)

    x = w("token_embd")[PROMPT]
    for i in range(LAYERS):
        b = f"blk.{i}."
        h = norm(x, b + "attn_norm")
        q, k = rope(h @ w(b + "attn_q").T, HEADS), rope(h @ w(b + "attn_k").T, KV_HEADS)
        v = (h @ w(b + "attn_v").T).reshape(n, KV_HEADS, HEAD_DIM)
        k, v = (np.repeat(t, HEADS // KV_HEADS, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(HEAD_DIM)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", p, v).reshape(n, -1) @ w(b + "attn_output").T
        h = norm(x, b + "ffn_norm")
        gate, up = h @ w(b + "ffn_gate").T, h @ w(b + "ffn_up").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w(b + "ffn_down").T
    return norm(x, "output_norm") @ w("output").T


@contextlib.contextmanager
def quiet():
    """llama.cpp talks through a callback."""
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    yield


def loaded(path: Path, vocab_only: bool):
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, path
    return model


def their_logits(path: Path) -> np.ndarray:
    """llama.cpp's, all positions, the KV cache in f32."""
    with quiet():
        model = loaded(path, False)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 128, 128, 1, 1
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(model, params)
        batch = llama_cpp.llama_batch_init(len(PROMPT), 0, 1)
        batch.n_tokens = len(PROMPT)
        for i, token in enumerate(PROMPT):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = llama_cpp.llama_get_logits(context)
        found = np.ctypeslib.as_array(logits, shape=(len(PROMPT), VOCABULARY)).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return found


def hexed(values: np.ndarray) -> str:
    return values.astype("<f4").tobytes().hex()


def logits() -> dict:
    cases = []
    for label, kind, mixed in [(k, k, False) for k in TYPES] + [("Q4_K with Q6_K", "Q4_K", True)]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            digest = write(path, llama_pairs("llama"), llama_tensors(kind, mixed))
            exact, theirs = exact_logits(path)[POSITIONS], their_logits(path)[POSITIONS]
        error = np.sqrt(((theirs - exact) ** 2).mean())
        print(f"{label}: logits up to {abs(exact).max():.2f}, llama.cpp's error {error:.2e}")
        cases.append({"label": label, "type": kind, "mixed": mixed, "sha256": digest, "exact": hexed(exact), "llama_cpp_error": float(error)})
    about = "Written by make_gguf_goldens.py. `exact`: logits after the prompt's tokens at `positions`, f64 from dequantised weights, kept as f32 (hex, little-endian). `llama_cpp_error`: root mean square of llama.cpp's differences from them."
    return {"about": about, "llama_cpp": llama_cpp.__version__, "prompt": PROMPT, "positions": POSITIONS, "vocabulary": VOCABULARY, "cases": cases}


def architectures() -> list[dict]:
    """What the other architectures have beside or in place of a Llama's pairs and tensors; `*` stands for every layer."""
    q, kv, dim = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, [HIDDEN]
    ends = [["token_embd.weight", [VOCABULARY, HIDDEN]], ["output_norm.weight", dim]]
    head = [["output.weight", [VOCABULARY, HIDDEN]]]

    def layer(*parts: tuple[str, list[int]]) -> list:
        return [[f"blk.*.{name}", shape] for name, shape in parts]

    attention = layer(("attn_norm.weight", dim), ("attn_q.weight", [q, HIDDEN]), ("attn_k.weight", [kv, HIDDEN]), ("attn_v.weight", [kv, HIDDEN]), ("attn_output.weight", [HIDDEN, q]))
    mlp = layer(("ffn_norm.weight", dim), ("ffn_gate.weight", [MLP, HIDDEN]), ("ffn_up.weight", [MLP, HIDDEN]), ("ffn_down.weight", [HIDDEN, MLP]))
    head_norms = layer(("attn_q_norm.weight", [HEAD_DIM]), ("attn_k_norm.weight", [HEAD_DIM]))
    after = layer(("post_attention_norm.weight", dim), ("post_ffw_norm.weight", dim))
    small = 128
    experts = layer(("ffn_norm.weight", dim), ("ffn_gate_inp.weight", [4, HIDDEN]), ("ffn_gate_exps.weight", [4, small, HIDDEN]), ("ffn_up_exps.weight", [4, small, HIDDEN]), ("ffn_down_exps.weight", [4, HIDDEN, small]))
    length = {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    return [
        {"label": "tied", "arch": "llama", "layers": 2, "pairs": {}, "tensors": ends + attention + mlp},
        {"label": "biases", "arch": "llama", "layers": 2, "pairs": {"rope.dimension_count": HEAD_DIM}, "tensors": ends + attention + layer(("attn_q.bias", [q]), ("attn_k.bias", [kv]), ("attn_v.bias", [kv]), ("attn_output.bias", dim)) + mlp + layer(("ffn_gate.bias", [MLP]), ("ffn_up.bias", [MLP]), ("ffn_down.bias", dim))},
        {"label": "factors", "arch": "llama", "layers": 2, "pairs": {}, "tensors": ends + head + [["rope_freqs.weight", [HEAD_DIM // 2]]] + attention + mlp},
        {"label": "linear", "arch": "llama", "layers": 2, "pairs": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "tensors": ends + head + attention + mlp},
        {"label": "yarn", "arch": "llama", "layers": 2, "pairs": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}, "tensors": ends + head + attention + mlp},
        {"label": "mixtral", "arch": "llama", "layers": 2, "pairs": {"expert_count": 4, "expert_used_count": 2, "feed_forward_length": small}, "tensors": ends + head + attention + experts},
        {"label": "qwen2", "arch": "qwen2", "layers": 2, "pairs": {}, "tensors": ends + attention + layer(("attn_q.bias", [q]), ("attn_k.bias", [kv]), ("attn_v.bias", [kv])) + mlp},
        {"label": "qwen3", "arch": "qwen3", "layers": 2, "pairs": length, "tensors": ends + head + attention + head_norms + mlp},
        {"label": "qwen3moe", "arch": "qwen3moe", "layers": 2, "pairs": length | {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": small}, "tensors": ends + head + attention + head_norms + experts},
        {"label": "gemma2", "arch": "gemma2", "layers": 2, "pairs": length | {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}, "tensors": ends + attention + after + mlp},
        {"label": "gemma3", "arch": "gemma3", "layers": 6, "pairs": length | {"attention.sliding_window": 8, "rope.freq_base": 1000000.0}, "tensors": ends + attention + head_norms + after + mlp},
        {"label": "phi3", "arch": "phi3", "layers": 2, "pairs": {"rope.dimension_count": HEAD_DIM}, "tensors": ends + head + layer(("attn_norm.weight", dim), ("attn_qkv.weight", [q + 2 * kv, HIDDEN]), ("attn_output.weight", [HIDDEN, q]), ("ffn_norm.weight", dim), ("ffn_up.weight", [2 * MLP, HIDDEN]), ("ffn_down.weight", [HIDDEN, MLP]))},
    ]


def architecture_goldens() -> dict:
    """llama.cpp's logits of f32 files."""
    cases = architectures()
    for case in cases:
        arch, own = case["arch"], {f"{case['arch']}.{key}": v for key, v in sorted(case["pairs"].items())}
        pairs = llama_pairs(arch) | {f"{arch}.block_count": case["layers"]} | own
        tensors = [(name.replace("*", str(i)), "F32", shape) for name, shape in case["tensors"] for i in range(case["layers"] if "*" in name else 1)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            case["sha256"] = write(path, pairs, tensors)
            found = their_logits(path)[POSITIONS]
        print(f"{case['label']}: logits up to {abs(found).max():.2f}")
        case["logits"] = hexed(found)
    return {"about": "Written by make_gguf_goldens.py. `logits`: llama.cpp's after the prompt's tokens at `positions` (f32, hex, little-endian).", "llama_cpp": llama_cpp.__version__, "prompt": PROMPT, "positions": POSITIONS, "cases": cases}


# ---- tokenizers ----------------------------------------------------------------------------------------------------

TEXTS = [
    "Hello, world!  It's 12345.678 o'clock; WE'LL see, DON'T we?",
    "  leading, trailing  \n\n\n and\tinner\r\n \t spaces   ",
    "Grüße aus Köln, naïve façade, İstanbul, Ελλάδα, Привет мир, שלום עולם, مرحبا بالعالم",
    "你好，世界！日本語のテキスト、ひらがなカタカナ。한국어 문장입니다. ไทย हिन्दी தமிழ்",
    "emoji 🦀🦀 👩‍👩‍👧‍👦 🇩🇪 ✈️ ½ ² ① Ⅷ ٣٤٥ x²+y²=z²",
    "control \x01\x02\x7f and \u200b\u200d zero width \ufeff mark, e\u0301 combined, \u00a0nbsp\u3000wide",
    "<|special|> and </s> <s> <unk> inside <|user-made|> text <|special|><|special|>x",
    "fn main() { println!(\"{:?}\", a[0..=9]); } // $x^2 <=> ~|`@#%&*()_+-=",
    "camelCaseWords HTTPServer iPhone15Pro ABCdef 1st 2nd 1,000,000 0x1F 3.14e-10",
    "'s 'T 're 'VE I'm she'll he'd ''' \"quoted\" ‘single’ “double” — – … //path/to/file",
    "aaaaaaaaaaaaaaaaaaaaaaaa ababababababab      ___----====",
    "",
    " ",
    "\n",
    "a",
]
PRES = ["llama-bpe", "qwen2", "gpt-2", "tekken", "gpt-4o", "smollm", "dbrx", "default"]
SPECIAL = ["<|special|>", "<|end|>"]
USER = "<|user-made|>"


def sentences(step: int) -> list[str]:
    """What vocabularies are learnt from: the texts without the texts of special tokens, and their endings."""
    texts = TEXTS
    for token in (*SPECIAL, USER):
        texts = [t.replace(token, "") for t in texts]
    return [t for text_ in texts for t in (text_, text_.lower())] + [t[i:] for t in texts for i in range(0, len(t), step)]


def byte_level() -> dict:
    """Merges learnt across all borders, so that where a text is cut first makes a difference."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, min_frequency=1, initial_alphabet=byte_texts(), show_progress=False)
    tokenizer.train_from_iterator(sentences(3), trainer)
    saved = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].get)
    types = [1] * len(tokens) + [3] * len(SPECIAL) + [4]
    return {"tokens": tokens + SPECIAL + [USER], "types": types, "merges": [" ".join(pair) for pair in saved["merges"]]}


def sentence_piece() -> dict:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(s.replace("\n", " ").replace("\x01", "").replace("\x02", "") for s in sentences(2)),
        model_writer=model, model_type="bpe", vocab_size=760, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=[USER], control_symbols=SPECIAL, add_dummy_prefix=True, split_by_whitespace=True, hard_vocab_limit=False, minloglevel=2,
    )
    piece = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = [2 if piece.is_unknown(i) else 3 if piece.is_control(i) else 6 if piece.is_byte(i) else 4 if piece.id_to_piece(i) == USER else 1 for i in range(len(piece))]
    return {"tokens": [piece.id_to_piece(i) for i in range(len(piece))], "types": kinds, "scores": [float(piece.get_score(i)) for i in range(len(piece))]}


def tokenized(path: Path, text_: str, special: bool) -> list[int]:
    model = loaded(path, True)
    vocab, data = llama_cpp.llama_model_get_vocab(model), text_.encode()
    room = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), special, special)
    llama_cpp.llama_model_free(model)
    assert count >= 0
    return list(room[:count])


def tokenizer_pairs(source: dict, pre: str | None, prefix: bool) -> dict:
    pairs = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2" if pre else "llama"}
    if pre:
        pairs |= {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": source["merges"], "tokenizer.ggml.bos_token_id": len(source["tokens"]) - 3}
    else:
        pairs |= {"tokenizer.ggml.scores": source["scores"], "tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.bos_token_id": source["tokens"].index("<s>")}
    return pairs | {"tokenizer.ggml.tokens": source["tokens"], "tokenizer.ggml.token_type": source["types"]}


def tokenizer_goldens() -> dict:
    sources, cases = {"bytes": byte_level(), "pieces": sentence_piece()}, []
    kinds = [("bytes", pre, False) for pre in PRES] + [("pieces", None, True), ("pieces", None, False)]
    for source, pre, prefix in kinds:
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "vocabulary.gguf"
            write(path, tokenizer_pairs(sources[source], pre, prefix), [])
            # As users' text, and as text in which special tokens count, BOS before it where the file says so.
            plain, special = ([tokenized(path, t, s) for t in TEXTS] for s in (False, True))
        cases.append({"source": source, "pre": pre, "add_space_prefix": prefix, "plain": plain, "special": special})
    about = "Written by make_gguf_goldens.py. `plain` and `special`: llama.cpp's ids of `texts`, without and with special tokens (BOS among them)."
    return {"about": about, "llama_cpp": llama_cpp.__version__, "texts": TEXTS, "sources": sources, "cases": cases}


def main() -> None:
    for file, make in (("gguf_logits", logits), ("gguf_architectures", architecture_goldens), ("gguf_tokenizers", tokenizer_goldens)):
        text_ = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
        # One case a line, so that a change of one shows as such.
        for key in ('{"label"', '{"source"', '"cases"', '"sources"', '"texts"'):
            text_ = text_.replace(key, "\n" + key)
        (HERE / "goldens" / f"{file}.json").write_text(text_ + "\n")
        print(file)


if __name__ == "__main__":
    main()

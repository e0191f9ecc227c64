"""A lean Llama: RMSNorm, rotary positions, grouped queries, SwiGLU, tied embeddings.

Parameter names and conventions (rotation by halves) are those of Hugging
Face's `LlamaForCausalLM`, so an exported folder loads there unchanged;
`make_goldens.py` compares the logits of the two.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer import BOS, CONTEXT, END, PAD, VOCABULARY


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Head dimension a multiple of 32 and KV heads of 3, so that it splits 2 : 1 over two devices."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 32
    theta: float = 10000.0
    eps: float = 1e-5


SHAPES = {
    "nano": Shape(hidden=288, layers=5, heads=9, kv_heads=3, intermediate=672),
    "pico": Shape(hidden=96, layers=4, heads=3, kv_heads=3, intermediate=192),
}


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [length, head_dim], halves repeated."""
    frequency = 1.0 / shape.theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [batch, heads, length, head_dim] by halves."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * self.weight


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        s = self.shape
        q = self.q_proj(x).view(b, t, s.heads, s.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = s.heads // s.kv_heads
        # Written out: at these lengths the fused kernel is several times slower on a CPU.
        q = q.reshape(b * s.kv_heads, group * t, s.head_dim)
        k, v = k.reshape(b * s.kv_heads, t, s.head_dim), v.reshape(b * s.kv_heads, t, s.head_dim)
        scores = (q @ k.mT).view(-1, group, t, t).float() * s.head_dim**-0.5 + mask
        weights = scores.softmax(dim=-1).to(v.dtype).view(-1, group * t, t)
        out = (weights @ v).view(b, s.heads, t, s.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.intermediate, bias=False)
        self.down_proj = nn.Linear(s.intermediate, s.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm = RmsNorm(s.hidden, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RmsNorm(s.hidden, s.eps)
        self.mlp = Mlp(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Inner(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, s.hidden)
        self.layers = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = RmsNorm(s.hidden, s.eps)


class Llama(nn.Module):
    """[batch, length] token ids to the final normalised hidden states; `logits` maps these to the vocabulary."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.model = Inner(s)
        cos, sin = rotary(s, CONTEXT)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # The outputs into the residual stream start smaller, as their sum grows with depth.
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5 * (0.5 / s.layers**0.5 if deep else 1.0))

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        x = self.model.embed_tokens(ids)
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        cos, sin = self.cos[:t].to(dtype), self.sin[:t].to(dtype)
        mask = torch.full((t, t), float("-inf")).triu(1)
        for block in self.model.layers:
            x = block(x, cos, sin, mask)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], limit: int = 64) -> list[list[int]]:
        """Greedy answers, all prompts of a call padded on the right and decoded together without a cache."""
        texts = [list(p) for p in prompts]
        live = list(range(len(texts)))
        while live and limit > 0:
            limit -= 1
            longest = max(len(texts[i]) for i in live)
            ids = torch.full((len(live), longest), PAD)
            for row, i in enumerate(live):
                ids[row, : len(texts[i])] = torch.tensor(texts[i])
            hidden = self(ids)
            last = torch.stack([hidden[row, len(texts[i]) - 1] for row, i in enumerate(live)])
            best = self.logits(last).argmax(-1).tolist()
            for i, token in zip(list(live), best):
                texts[i].append(token)
            live = [i for i in live if texts[i][-1] != END]
        return [t[len(p) :] for t, p in zip(texts, prompts)]


def export(model: Llama, folder: Path) -> None:
    """Writes config.json and model.safetensors (bf16) as Hugging Face lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    s = model.shape
    save_file({n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": VOCABULARY, "hidden_size": s.hidden, "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": s.eps, "rope_theta": s.theta, "rope_scaling": None,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True,
        "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16",
        "bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD,
    }, indent=2) + "\n")


def load(folder: Path) -> Llama:
    """Loads an exported folder, weights upcast to f32."""
    c = json.loads((folder / "config.json").read_text())
    shape = Shape(c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"], c["intermediate_size"], c["head_dim"], c["rope_theta"], c["rms_norm_eps"])
    model = Llama(shape)
    model.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
    return model.eval()


def parameters(model: Llama) -> int:
    return sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    for name, shape in SHAPES.items():
        print(name, parameters(Llama(shape)), asdict(shape))

"""A lean BERT encoder with a score head: the cross-encoder.

Names and conventions are those of Hugging Face's
`BertForSequenceClassification` with one label: post-norm blocks, exact GELU,
the pooler's tanh on the first token, one linear score. A second head, tied to
the embeddings, guesses masked answer tokens while training; it is not
exported.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer import PAD, VOCABULARY


@dataclass(frozen=True)
class Shape:
    hidden: int = 192
    layers: int = 5
    heads: int = 6
    intermediate: int = 768
    positions: int = 256
    eps: float = 1e-12


class Embeddings(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, s.hidden)
        self.position_embeddings = nn.Embedding(s.positions, s.hidden)
        self.token_type_embeddings = nn.Embedding(2, s.hidden)
        self.LayerNorm = nn.LayerNorm(s.hidden, eps=s.eps)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings(types)
        return self.LayerNorm(x)


class SelfAttention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.heads = s.heads
        self.query, self.key, self.value = (nn.Linear(s.hidden, s.hidden) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, h = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2).reshape(b * self.heads, t, -1) for f in (self.query, self.key, self.value))
        scores = (q @ k.mT).view(b, self.heads, t, t).float() * (h // self.heads) ** -0.5 + mask
        weights = scores.softmax(dim=-1).to(v.dtype).view(b * self.heads, t, t)
        return (weights @ v).view(b, self.heads, t, -1).transpose(1, 2).reshape(b, t, h)


class Output(nn.Module):
    """A projection added to the residual stream, then the norm."""

    def __init__(self, inputs: int, s: Shape):
        super().__init__()
        self.dense = nn.Linear(inputs, s.hidden)
        self.LayerNorm = nn.LayerNorm(s.hidden, eps=s.eps)

    def forward(self, y: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dense(y))


class Layer(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(s), "output": Output(s.hidden, s)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(s.hidden, s.intermediate)})
        self.output = Output(s.intermediate, s)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embeddings = Embeddings(s)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(s) for _ in range(s.layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(s.hidden, s.hidden)})


class CrossEncoder(nn.Module):
    """Token ids and types [batch, length] (padded on the right) to one logit per row; its sigmoid is the probability that the answer is good."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.bert = Bert(s)
        self.classifier = nn.Linear(s.hidden, 1)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if p.shape[0] in (VOCABULARY, s.positions, 2, 1) else p.shape[1] ** -0.5)

    def hidden(self, ids: Tensor, types: Tensor) -> Tensor:
        mask = torch.where(ids == PAD, -1e9, 0.0)[:, None, None, :]
        x = self.bert.embeddings(ids, types)
        for layer in self.bert.encoder["layer"]:
            x = layer(x, mask)
        return x

    def score(self, hidden: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.bert.pooler["dense"](hidden[:, 0])))[:, 0]

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        return self.score(self.hidden(ids, types))


def export(model: CrossEncoder, folder: Path) -> None:
    """Writes config.json and model.safetensors (bf16) as Hugging Face lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    s = model.shape
    save_file({n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "num_labels": 1,
        "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "vocab_size": VOCABULARY, "hidden_size": s.hidden, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "intermediate_size": s.intermediate, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": s.positions, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": s.eps,
        "position_embedding_type": "absolute", "pad_token_id": PAD, "torch_dtype": "bfloat16",
    }, indent=2) + "\n")


def load(folder: Path) -> CrossEncoder:
    """Loads an exported folder, weights upcast to f32."""
    c = json.loads((folder / "config.json").read_text())
    model = CrossEncoder(Shape(c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"], c["intermediate_size"], c["max_position_embeddings"], c["layer_norm_eps"]))
    model.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
    return model.eval()

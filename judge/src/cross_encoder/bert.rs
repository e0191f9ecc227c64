//! BERT for sequence classification with one label (Devlin et al. 2018; Hugging Face names), in candle.
//!
//! Shapes: ids and types `[batch, length]`, padded on the right; mask `[batch, length]` with 1 for real tokens; the
//! result is one logit per row. Weights may be bf16 or f32 in the file; compute is f32.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear};
use serde::Deserialize;

/// What is read of `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Must hold `BertForSequenceClassification`.
    pub architectures: Vec<String>,
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Longest input.
    pub max_position_embeddings: usize,
    /// Segments, 2.
    pub type_vocab_size: usize,
    /// Of every norm.
    pub layer_norm_eps: f64,
    /// Id of padding.
    #[serde(default)]
    pub pad_token_id: u32,
    /// `gelu` (the exact one).
    pub hidden_act: String,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    out_norm: LayerNorm,
    heads: usize,
}

impl Layer {
    fn load(vb: VarBuilder, c: &Config) -> Result<Self> {
        let (h, eps) = (c.hidden_size, c.layer_norm_eps);
        let attention = vb.pp("attention");
        Ok(Self {
            query: linear(h, h, attention.pp("self.query"))?,
            key: linear(h, h, attention.pp("self.key"))?,
            value: linear(h, h, attention.pp("self.value"))?,
            attention_out: linear(h, h, attention.pp("output.dense"))?,
            attention_norm: layer_norm(h, eps, attention.pp("output.LayerNorm"))?,
            up: linear(h, c.intermediate_size, vb.pp("intermediate.dense"))?,
            down: linear(c.intermediate_size, h, vb.pp("output.dense"))?,
            out_norm: layer_norm(h, eps, vb.pp("output.LayerNorm"))?,
            heads: c.num_attention_heads,
        })
    }

    /// `[batch, length, hidden]` to `[batch, heads, length, head]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, h) = x.dims3()?;
        x.reshape((b, t, self.heads, h / self.heads))?.transpose(1, 2)?.contiguous()
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (
            self.split(&self.query.forward(x)?)?,
            self.split(&self.key.forward(x)?)?,
            self.split(&self.value.forward(x)?)?,
        );
        let scale = (q.dim(D::Minus1)? as f64).sqrt().recip();
        let scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?.broadcast_add(bias)?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.flatten_from(D::Minus2)?;
        let x = self.attention_norm.forward(&(self.attention_out.forward(&mixed)? + x)?)?;
        let mlp = self.down.forward(&self.up.forward(&x)?.gelu_erf()?)?;
        self.out_norm.forward(&(mlp + x)?)
    }
}

/// The encoder with its score head.
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Linear,
    classifier: Linear,
}

impl Bert {
    /// Tensors under their Hugging Face names.
    pub fn load(vb: VarBuilder, c: &Config) -> Result<Self> {
        let e = vb.pp("bert.embeddings");
        let h = c.hidden_size;
        Ok(Self {
            words: embedding(c.vocab_size, h, e.pp("word_embeddings"))?,
            positions: embedding(c.max_position_embeddings, h, e.pp("position_embeddings"))?,
            types: embedding(c.type_vocab_size, h, e.pp("token_type_embeddings"))?,
            norm: layer_norm(h, c.layer_norm_eps, e.pp("LayerNorm"))?,
            layers: (0..c.num_hidden_layers)
                .map(|i| Layer::load(vb.pp(format!("bert.encoder.layer.{i}")), c))
                .collect::<Result<_>>()?,
            pooler: linear(h, h, vb.pp("bert.pooler.dense"))?,
            classifier: linear(h, 1, vb.pp("classifier"))?,
        })
    }

    /// One logit per row.
    pub fn forward(&self, ids: &Tensor, types: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (_, length) = ids.dims2()?;
        let positions = Tensor::arange(0, length as u32, ids.device())?;
        let x = (self.words.forward(ids)? + self.types.forward(types)?)?;
        let mut x = self.norm.forward(&x.broadcast_add(&self.positions.forward(&positions)?)?)?;
        // 0 for real tokens, −1e9 for padding, over [batch, 1, 1, length].
        let bias = ((mask.to_dtype(DType::F32)? - 1.0)? * 1e9)?.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias)?;
        }
        let first = x.narrow(1, 0, 1)?.squeeze(1)?;
        self.classifier.forward(&self.pooler.forward(&first)?.tanh()?)?.squeeze(1)
    }
}

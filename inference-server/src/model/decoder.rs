//! The decoder: which tensors a model has, and its forward pass as a [`Program`] for one device of a split.
//!
//! One definition for all architectures, driven by [`DecoderConfig`]: RMS norm before attention and MLP (and after them,
//! where the configuration says so), rotary positions by halves, grouped queries, a gated MLP or a mixture of such.
//! It takes a [`ModelShard`] from the start: one device is the split into one.
//! Sources: Touvron et al., "Llama 2" (2023); Jiang et al., "Mistral 7B" (2023) and "Mixtral of Experts" (2024); "Gemma 2"
//! and "Gemma 3" (2024, 2025); "Qwen3" (2025); "Phi-3" (2024); tensors as `transformers` lays them out.

use std::ops::Range;

use polylink_kernels::{
    AttentionSpec, Backend, BufferId, Epilogue, ExpertWeights, ExpertsSpec, KRanges, KvDtype, KvSpec, Op, Program,
    ProgramBuilder, RopeId, Shard, WeightForm, WeightId,
};

use super::architecture::{DecoderConfig, MixtureConfig};
use super::error::ModelError;
use super::loader::{Loader, Piece};
use super::split_plan::{ModelShard, SplitPlan};
use super::weights::Weights;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const FINAL_NORM: &str = "model.norm.weight";

fn layer_tensor(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

/// Name of the norm before the MLP, and of those after attention and MLP.
fn norm_names(config: &DecoderConfig) -> (&'static str, Option<[&'static str; 2]>) {
    if config.post_norms {
        let after = ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"];
        ("pre_feedforward_layernorm.weight", Some(after))
    } else {
        ("post_attention_layernorm.weight", None)
    }
}

/// Values of all query heads, and of all KV heads.
fn attention_widths(config: &DecoderConfig) -> (usize, usize) {
    (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim)
}

/// Checks that all tensors of the model are there with their shapes, and no bias that would be left out.
///
/// # Errors
/// The first one that is not as the configuration says.
pub(crate) fn check(config: &DecoderConfig, weights: &Weights) -> Result<(), ModelError> {
    let hidden = config.hidden_size;
    weights.expect(EMBEDDING, &[config.vocab_size, hidden])?;
    weights.expect(FINAL_NORM, &[hidden])?;
    if !is_tied(config, weights) {
        weights.expect(HEAD, &[config.vocab_size, hidden])?;
    }
    for layer in 0..config.layers.len() {
        let tensors = layer_tensors(config, layer);
        for (name, shape) in &tensors {
            weights.expect(name, shape)?;
        }
        weights.refuse_other_biases(&layer_tensor(layer, ""), |bias| tensors.iter().any(|(name, _)| name == bias))?;
    }
    Ok(())
}

/// Names and shapes of a layer's tensors.
fn layer_tensors(config: &DecoderConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, head_dim, kind) = (config.hidden_size, config.head_dim, config.layers[layer]);
    let mut all = Vec::new();
    let mut add = |name: &str, shape: &[usize]| all.push((layer_tensor(layer, name), shape.to_vec()));
    let (before_mlp, after) = norm_names(config);
    for norm in ["input_layernorm.weight", before_mlp].into_iter().chain(after.into_iter().flatten()) {
        add(norm, &[hidden]);
    }
    if config.head_norms {
        add("self_attn.q_norm.weight", &[head_dim]);
        add("self_attn.k_norm.weight", &[head_dim]);
    }
    let (q, kv) = attention_widths(config);
    if config.fused {
        add("self_attn.qkv_proj.weight", &[q + 2 * kv, hidden]);
    }
    for (name, width) in [("q", q), ("k", kv), ("v", kv)].into_iter().filter(|_| !config.fused) {
        add(&format!("self_attn.{name}_proj.weight"), &[width, hidden]);
        if config.qkv_bias {
            add(&format!("self_attn.{name}_proj.bias"), &[width]);
        }
    }
    add("self_attn.o_proj.weight", &[hidden, q]);
    if config.output_bias {
        add("self_attn.o_proj.bias", &[hidden]);
    }
    let mlp = config.intermediate_size;
    match &config.mixture {
        Some(mixture) if kind.mixture => {
            add(&format!("{}.gate.weight", mixture.prefix), &[mixture.experts, hidden]);
            for expert in 0..mixture.experts {
                let [gate, up, down] = expert_names(mixture, expert);
                add(&gate, &[mixture.intermediate_size, hidden]);
                add(&up, &[mixture.intermediate_size, hidden]);
                add(&down, &[hidden, mixture.intermediate_size]);
            }
            return all;
        }
        _ if config.fused => add("mlp.gate_up_proj.weight", &[2 * mlp, hidden]),
        _ => {
            add("mlp.gate_proj.weight", &[mlp, hidden]);
            add("mlp.up_proj.weight", &[mlp, hidden]);
        }
    }
    add("mlp.down_proj.weight", &[hidden, mlp]);
    if config.mlp_bias {
        add("mlp.gate_proj.bias", &[mlp]);
        add("mlp.up_proj.bias", &[mlp]);
        add("mlp.down_proj.bias", &[hidden]);
    }
    all
}

fn expert_names(mixture: &MixtureConfig, expert: usize) -> [String; 3] {
    mixture.projections.map(|projection| format!("{}.experts.{expert}.{projection}.weight", mixture.prefix))
}

/// The output head is the embedding, unless a head of its own is there.
fn is_tied(config: &DecoderConfig, weights: &Weights) -> bool {
    config.tie_word_embeddings || !weights.has(HEAD)
}

fn scaled(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

fn shifted(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

/// Prepares the weights of one rank on the backend and writes its forward pass down.
pub(crate) fn load(
    config: &DecoderConfig,
    weights: &Weights,
    form: WeightForm,
    kv_dtype: KvDtype,
    split: &SplitPlan,
    rank: usize,
    backend: &mut dyn Backend,
) -> Result<Program, ModelError> {
    let loader = Loader { weights, backend, form, norm_plus_one: config.norm_plus_one, buffers: Default::default() };
    let mut decoder = Decoder::new(config, kv_dtype, split, rank, loader);
    let head = decoder.tables()?;
    for layer in split.shards[rank].layers.clone() {
        decoder.attention(layer)?;
        match &config.mixture {
            Some(mixture) if config.layers[layer].mixture => decoder.experts(layer, mixture)?,
            _ => decoder.mlp(layer)?,
        }
    }
    decoder.head(head)
}

/// Activation buffers of the program.
#[derive(Clone, Copy)]
struct Buffers {
    /// The residual stream, `[R][hidden]`.
    x: BufferId,
    /// What a block reads, and what it leaves for the norm after it.
    h: BufferId,
    qkv: BufferId,
    attended: BufferId,
    gate_up: BufferId,
    middle: BufferId,
    /// Router logits and sums of experts, if there are any.
    routed: Option<[BufferId; 2]>,
}

/// The forward pass being written.
struct Decoder<'a> {
    config: &'a DecoderConfig,
    split: &'a SplitPlan,
    rank: usize,
    own: &'a ModelShard,
    loader: Loader<'a>,
    program: ProgramBuilder,
    ropes: Vec<RopeId>,
    buffers: Buffers,
}

impl<'a> Decoder<'a> {
    fn new(
        config: &'a DecoderConfig,
        kv_dtype: KvDtype,
        split: &'a SplitPlan,
        rank: usize,
        loader: Loader<'a>,
    ) -> Self {
        let (own, hidden, head_dim) = (&split.shards[rank], config.hidden_size, config.head_dim);
        let kv = KvSpec { dtype: kv_dtype, ..KvSpec::f32(own.layers.len(), own.kv_heads.len(), head_dim) };
        let mut program = ProgramBuilder::new(kv, config.vocab_size);
        let ropes = config.ropes.iter().map(|rope| program.rope(rope.clone())).collect();
        let query_heads = own.kv_heads.len() * config.group_heads();
        let (x, h) = (program.step_buffer(hidden), program.step_buffer(hidden));
        let qkv = program.step_buffer((query_heads + 2 * own.kv_heads.len()) * head_dim);
        let attended = program.step_buffer(query_heads * head_dim);
        let dense = config.layers.iter().any(|layer| !layer.mixture);
        let mlp = if dense { own.mlp.len() } else { 0 };
        let (gate_up, middle) = (program.step_buffer(2 * mlp), program.step_buffer(mlp));
        let routed = config.mixture.as_ref().map(|mixture| {
            let planes = experts_spec(config, mixture, own).planes();
            [program.step_buffer(mixture.experts), program.step_buffer(planes * hidden)]
        });
        let buffers = Buffers { x, h, qkv, attended, gate_up, middle, routed };
        Self { config, split, rank, own, loader, program, ropes, buffers }
    }

    /// What every rank sends of a product whose inputs it holds in part.
    fn planes(&self, ranges: &KRanges, columns: impl Fn(&ModelShard) -> Range<usize>) -> Vec<usize> {
        self.split.shards.iter().map(|shard| ranges.planes(&columns(shard))).collect()
    }

    fn norm(&mut self, name: &str, input: BufferId, output: BufferId) -> Result<(), ModelError> {
        let weight = self.loader.norm(name, self.config.hidden_size)?;
        self.program.push(Op::RmsNorm { input, weight, eps: self.config.rms_norm_eps, residual: None, output });
        Ok(())
    }

    /// A block's last product, added to the residual stream, with a norm before that where there is one.
    fn close(
        &mut self,
        weight: WeightId,
        input: BufferId,
        planes: &[usize],
        bias: Option<WeightId>,
        norm: Option<String>,
    ) -> Result<(), ModelError> {
        let Buffers { x, h, .. } = self.buffers;
        let (residual, output) = if norm.is_some() { (None, h) } else { (Some(x), x) };
        self.program.row_parallel(weight, input, planes, self.rank, Epilogue { bias, residual }, output);
        if let Some(name) = norm {
            let weight = self.loader.norm(&name, self.config.hidden_size)?;
            let eps = self.config.rms_norm_eps;
            self.program.push(Op::RmsNorm { input: h, weight, eps, residual: Some(x), output: x });
        }
        Ok(())
    }

    /// Embedding and output head, the largest tensors: the first ones, so that nothing else is held beside their files'
    /// bytes. Returns the head.
    fn tables(&mut self) -> Result<WeightId, ModelError> {
        let (config, own) = (self.config, self.own);
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let tied = is_tied(config, self.loader.weights);
        let mut load = |name: &str, rows| {
            let piece = Piece { name: name.into(), shape: [vocabulary, hidden], shard: Shard::rows(rows, hidden) };
            self.loader.matrix(&[piece], KRanges::whole(hidden))
        };
        let table = load(EMBEDDING, 0..vocabulary)?;
        let head = match own.vocabulary.clone() {
            all if tied && all.len() == vocabulary => table,
            rows => load(if tied { EMBEDDING } else { HEAD }, rows)?,
        };
        self.loader.release();
        self.program.push(Op::Embed { table, scale: config.embedding_scale, output: self.buffers.x });
        Ok(head)
    }

    fn attention(&mut self, layer: usize) -> Result<(), ModelError> {
        let (config, own, Buffers { x, h, qkv, attended, .. }) = (self.config, self.own, self.buffers);
        let (hidden, head_dim, group) = (config.hidden_size, config.head_dim, config.group_heads());
        let name = |tensor: &str| layer_tensor(layer, tensor);
        self.norm(&name("input_layernorm.weight"), x, h)?;

        let (q_all, kv_all) = attention_widths(config);
        let (q_rows, kv_rows) = (scaled(&own.kv_heads, group * head_dim), scaled(&own.kv_heads, head_dim));
        let parts = [("q", q_all, &q_rows, 0), ("k", kv_all, &kv_rows, q_all), ("v", kv_all, &kv_rows, q_all + kv_all)];
        let pieces = parts.map(|(part, all, rows, offset)| {
            let (name, outputs, rows) = if config.fused {
                (name("self_attn.qkv_proj.weight"), q_all + 2 * kv_all, shifted(rows, offset))
            } else {
                (name(&format!("self_attn.{part}_proj.weight")), all, rows.clone())
            };
            Piece { name, shape: [outputs, hidden], shard: Shard::rows(rows, hidden) }
        });
        let weight = self.loader.matrix(&pieces, KRanges::whole(hidden))?;
        let stretches =
            parts.map(|(part, all, rows, _)| (name(&format!("self_attn.{part}_proj.bias")), all, rows.clone()));
        let bias = if config.qkv_bias { Some(self.loader.bias(&stretches)?) } else { None };
        self.program.push(Op::Gemm { weight, input: h, output: qkv, epilogue: Epilogue { bias, residual: None } });

        let kind = config.layers[layer];
        let attention = AttentionSpec {
            query_heads: own.kv_heads.len() * group,
            kv_heads: own.kv_heads.len(),
            head_dim,
            scale: config.attention_scale,
            window: kind.window,
            soft_cap: config.attention_soft_cap,
        };
        if config.head_norms {
            let query = self.loader.norm(&name("self_attn.q_norm.weight"), head_dim)?;
            let key = self.loader.norm(&name("self_attn.k_norm.weight"), head_dim)?;
            self.program.push(Op::HeadNorm { qkv, attention, query, key, eps: config.rms_norm_eps });
        }
        let held = layer - own.layers.start;
        self.program.push(Op::RopeAppend { layer: held, qkv, attention, rope: self.ropes[kind.rope] });
        self.program.push(Op::Attention { layer: held, qkv, output: attended, attention });

        let ranges = KRanges::kv_groups(q_all, group * head_dim);
        let planes = self.planes(&ranges, |shard| scaled(&shard.kv_heads, group * head_dim));
        let shard = Shard::columns(hidden, q_rows);
        let piece = Piece { name: name("self_attn.o_proj.weight"), shape: [hidden, q_all], shard };
        let weight = self.loader.matrix(&[piece], ranges)?;
        let bias = self.output_bias(config.output_bias, name("self_attn.o_proj.bias"))?;
        let norm = norm_names(config).1.map(|[after_attention, _]| name(after_attention));
        self.close(weight, attended, &planes, bias, norm)
    }

    fn output_bias(&mut self, there: bool, name: String) -> Result<Option<WeightId>, ModelError> {
        let hidden = self.config.hidden_size;
        if there { self.loader.bias(&[(name, hidden, 0..hidden)]).map(Some) } else { Ok(None) }
    }

    fn mlp(&mut self, layer: usize) -> Result<(), ModelError> {
        let (config, own, Buffers { x, h, gate_up, middle, .. }) = (self.config, self.own, self.buffers);
        let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
        let name = |tensor: &str| layer_tensor(layer, tensor);
        self.norm(&name(norm_names(config).0), x, h)?;

        let pieces = [("gate", 0), ("up", mlp)].map(|(part, offset)| {
            let (name, outputs, rows) = if config.fused {
                (name("mlp.gate_up_proj.weight"), 2 * mlp, shifted(&own.mlp, offset))
            } else {
                (name(&format!("mlp.{part}_proj.weight")), mlp, own.mlp.clone())
            };
            Piece { name, shape: [outputs, hidden], shard: Shard::rows(rows, hidden) }
        });
        let weight = self.loader.matrix(&pieces, KRanges::whole(hidden))?;
        let stretches = ["gate", "up"].map(|part| (name(&format!("mlp.{part}_proj.bias")), mlp, own.mlp.clone()));
        let bias = if config.mlp_bias { Some(self.loader.bias(&stretches)?) } else { None };
        self.program.push(Op::Gemm { weight, input: h, output: gate_up, epilogue: Epilogue { bias, residual: None } });
        self.program.push(Op::GatedMul { activation: config.activation, input: gate_up, output: middle });

        let ranges = KRanges::mlp(mlp);
        let planes = self.planes(&ranges, |shard| shard.mlp.clone());
        let shard = Shard::columns(hidden, own.mlp.clone());
        let piece = Piece { name: name("mlp.down_proj.weight"), shape: [hidden, mlp], shard };
        let weight = self.loader.matrix(&[piece], ranges)?;
        let bias = self.output_bias(config.mlp_bias, name("mlp.down_proj.bias"))?;
        let norm = norm_names(config).1.map(|[_, after_mlp]| name(after_mlp));
        self.close(weight, middle, &planes, bias, norm)
    }

    fn experts(&mut self, layer: usize, mixture: &MixtureConfig) -> Result<(), ModelError> {
        let (config, own, Buffers { x, h, routed, .. }) = (self.config, self.own, self.buffers);
        let Some([router, sums]) = routed else { return Ok(()) };
        let (hidden, mlp) = (config.hidden_size, mixture.intermediate_size);
        let name = |tensor: &str| layer_tensor(layer, tensor);
        self.norm(&name(norm_names(config).0), x, h)?;

        // A choice is not rounded: the router is computed in exact f32 in every profile.
        let shape = [mixture.experts, hidden];
        let piece =
            Piece { name: name(&format!("{}.gate.weight", mixture.prefix)), shape, shard: Shard::whole(&shape) };
        let weight = self.loader.matrix_as(&[piece], KRanges::whole(hidden), WeightForm::Float)?;
        self.program.push(Op::Gemm { weight, input: h, output: router, epilogue: Epilogue::default() });

        let mut weights = Vec::with_capacity(own.experts.len());
        for expert in own.experts.clone() {
            let [gate, up, down] = expert_names(mixture, expert).map(|tensor| name(&tensor));
            let piece = |name: String, shape: [usize; 2]| Piece { name, shape, shard: Shard::whole(&shape) };
            let gate_up = [piece(gate, [mlp, hidden]), piece(up, [mlp, hidden])];
            let gate_up = self.loader.matrix(&gate_up, KRanges::whole(hidden))?;
            let down = self.loader.matrix(&[piece(down, [hidden, mlp])], KRanges::mlp(mlp))?;
            weights.push(ExpertWeights { gate_up, down });
        }
        let spec = experts_spec(config, mixture, own);
        self.program.push(Op::Experts { input: h, router, spec, weights, output: sums });
        let planes = self.split.shards.iter().map(|shard| experts_spec(config, mixture, shard).planes()).collect();
        let epilogue = Epilogue { bias: None, residual: Some(x) };
        self.program.push(Op::AllReduce { input: sums, planes, epilogue, output: x });
        Ok(())
    }

    fn head(mut self, head: WeightId) -> Result<Program, ModelError> {
        let (config, Buffers { x, .. }) = (self.config, self.buffers);
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let (last, normed) = (self.program.wanted_buffer(hidden), self.program.wanted_buffer(hidden));
        let logits = self.program.wanted_buffer(vocabulary);
        self.program.push(Op::GatherRows { input: x, output: last });
        self.norm(FINAL_NORM, last, normed)?;
        self.program.push(Op::Sketch { input: normed });
        let widths: Vec<usize> = self.split.shards.iter().map(|shard| shard.vocabulary.len()).collect();
        self.program.column_parallel_gathered(head, normed, &widths, self.rank, logits);
        if let Some(cap) = config.logit_soft_cap {
            self.program.push(Op::SoftCap { buffer: logits, cap });
        }
        Ok(self.program.finish(logits))
    }
}

/// The part of a mixture that a device holds.
fn experts_spec(config: &DecoderConfig, mixture: &MixtureConfig, shard: &ModelShard) -> ExpertsSpec {
    ExpertsSpec {
        experts: mixture.experts,
        first: shard.experts.start,
        top_k: mixture.top_k,
        normalise: mixture.normalise,
        activation: config.activation,
    }
}

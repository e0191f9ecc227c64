//! The Llama architecture: which tensors it has, and its forward pass as a [`Program`] for one device of a split.
//!
//! Source: Touvron et al., "LLaMA" (2023) and "Llama 2" (grouped queries), as `transformers`' `LlamaForCausalLM` lays
//! them out: RMS norm before attention and MLP, rotary positions by halves, SwiGLU, no biases.

use std::ops::Range;

use polylink_kernels::{
    AttentionSpec, Backend, Epilogue, KRanges, KvSpec, Op, Part, Program, ProgramBuilder, RopeSpec, Shard, TensorView,
    WeightForm, WeightId,
};
use polylink_protocol::exact_math::rope_frequencies;

use super::config::LlamaConfig;
use super::error::ModelError;
use super::split_plan::{ModelShard, SplitPlan};
use super::weights::Weights;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const FINAL_NORM: &str = "model.norm.weight";

fn layer_tensor(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}.weight")
}

/// Names and shapes of all tensors of the model.
pub(crate) fn tensors(config: &LlamaConfig, weights: &Weights) -> Vec<(String, Vec<usize>)> {
    let LlamaConfig { hidden_size: hidden, intermediate_size: mlp, head_dim, .. } = *config;
    let (q, kv) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
    let mut all = vec![(EMBEDDING.into(), vec![config.vocab_size, hidden]), (FINAL_NORM.into(), vec![hidden])];
    if !is_tied(config, weights) {
        all.push((HEAD.into(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_hidden_layers {
        let shapes = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![mlp, hidden]),
            ("mlp.up_proj", vec![mlp, hidden]),
            ("mlp.down_proj", vec![hidden, mlp]),
        ];
        all.extend(shapes.into_iter().map(|(name, shape)| (layer_tensor(layer, name), shape)));
    }
    all
}

/// The output head is the embedding, unless a head of its own is there.
fn is_tied(config: &LlamaConfig, weights: &Weights) -> bool {
    config.tie_word_embeddings || !weights.has(HEAD)
}

/// Reads tensors and hands them to the backend.
struct Loader<'a> {
    weights: &'a Weights,
    backend: &'a mut dyn Backend,
    form: WeightForm,
    /// Bytes of the parts being prepared, reused.
    buffers: [Vec<u8>; 3],
}

impl Loader<'_> {
    /// Prepares one weight of tensors stacked along their outputs.
    fn prepare(&mut self, parts: &[(&str, [usize; 2], Shard)], ranges: KRanges) -> Result<WeightId, ModelError> {
        let mut places = Vec::with_capacity(parts.len());
        for ((name, shape, _), buffer) in parts.iter().zip(&mut self.buffers) {
            let place = self.weights.expect(name, shape)?;
            self.weights.read(name, place, buffer)?;
            places.push(place);
        }
        let parts: Vec<Part<'_>> = parts
            .iter()
            .zip(places)
            .zip(&self.buffers)
            .map(|(((name, shape, shard), place), data)| Part {
                tensor: TensorView { name, shape, dtype: place.dtype, data },
                shard: shard.clone(),
            })
            .collect();
        Ok(self.backend.prepare(&parts, ranges, self.form)?)
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<WeightId, ModelError> {
        let place = self.weights.expect(name, &[length])?;
        self.weights.read(name, place, &mut self.buffers[0])?;
        let tensor = TensorView { name, shape: &[length], dtype: place.dtype, data: &self.buffers[0] };
        let part = Part { tensor, shard: Shard::whole(&[length]) };
        Ok(self.backend.prepare(&[part], KRanges::whole(1), WeightForm::Vector)?)
    }
}

fn scaled(range: &Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

/// Prepares the weights of one rank on the backend and writes its forward pass down.
pub(crate) fn load(
    config: &LlamaConfig,
    weights: &Weights,
    form: WeightForm,
    split: &SplitPlan,
    rank: usize,
    backend: &mut dyn Backend,
) -> Result<Program, ModelError> {
    let LlamaConfig { hidden_size: hidden, head_dim, vocab_size: vocabulary, .. } = *config;
    let (group, eps) = (config.group_heads(), config.rms_norm_eps);
    let own = &split.shards[rank];
    let kv_heads = own.kv_heads.len();
    let attention = AttentionSpec {
        query_heads: kv_heads * group,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
    };
    let o_ranges = KRanges::kv_groups(config.num_attention_heads * head_dim, group * head_dim);
    let mlp_ranges = KRanges::mlp(config.intermediate_size);
    let planes = |ranges: &KRanges, columns: &dyn Fn(&ModelShard) -> Range<usize>| -> Vec<usize> {
        split.shards.iter().map(|shard| ranges.planes(&columns(shard))).collect()
    };
    let o_planes = planes(&o_ranges, &|shard| scaled(&shard.kv_heads, group * head_dim));
    let mlp_planes = planes(&mlp_ranges, &|shard| shard.mlp.clone());

    let mut loader = Loader { weights, backend, form, buffers: Default::default() };
    let mut program = ProgramBuilder::new(KvSpec::f32(config.num_hidden_layers, kv_heads, head_dim), vocabulary);
    let rope = program.rope(RopeSpec { frequencies: rope_frequencies(config.rope_theta, head_dim), scale: 1.0 });
    let (x, h) = (program.step_buffer(hidden), program.step_buffer(hidden));
    let qkv = program.step_buffer((attention.query_heads + 2 * kv_heads) * head_dim);
    let attended = program.step_buffer(attention.query_heads * head_dim);
    let (gate_up, middle) = (program.step_buffer(2 * own.mlp.len()), program.step_buffer(own.mlp.len()));
    let (last, normed) = (program.wanted_buffer(hidden), program.wanted_buffer(hidden));
    let logits = program.wanted_buffer(vocabulary);
    let add_to_x = Epilogue { bias: None, residual: Some(x) };

    let whole_table = Shard::rows(0..vocabulary, hidden);
    let table = loader.prepare(&[(EMBEDDING, [vocabulary, hidden], whole_table.clone())], KRanges::whole(hidden))?;
    program.push(Op::Embed { table, output: x });
    for layer in 0..config.num_hidden_layers {
        let name = |tensor| layer_tensor(layer, tensor);
        let norm = loader.vector(&name("input_layernorm"), hidden)?;
        program.push(Op::RmsNorm { input: x, weight: norm, eps, output: h });
        let (q_rows, kv_rows) = (scaled(&own.kv_heads, group * head_dim), scaled(&own.kv_heads, head_dim));
        let (q_all, kv_all) = (config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim);
        let weight = loader.prepare(
            &[
                (&name("self_attn.q_proj"), [q_all, hidden], Shard::rows(q_rows.clone(), hidden)),
                (&name("self_attn.k_proj"), [kv_all, hidden], Shard::rows(kv_rows.clone(), hidden)),
                (&name("self_attn.v_proj"), [kv_all, hidden], Shard::rows(kv_rows, hidden)),
            ],
            KRanges::whole(hidden),
        )?;
        program.push(Op::Gemm { weight, input: h, output: qkv, epilogue: Epilogue::default() });
        program.push(Op::RopeAppend { layer, qkv, attention, rope });
        program.push(Op::Attention { layer, qkv, output: attended, attention });
        let o_part = (&*name("self_attn.o_proj"), [hidden, q_all], Shard::columns(hidden, q_rows));
        let weight = loader.prepare(&[o_part], o_ranges)?;
        program.row_parallel(weight, attended, &o_planes, rank, add_to_x, x);

        let norm = loader.vector(&name("post_attention_layernorm"), hidden)?;
        program.push(Op::RmsNorm { input: x, weight: norm, eps, output: h });
        let mlp_shape = [config.intermediate_size, hidden];
        let mlp_shard = Shard::rows(own.mlp.clone(), hidden);
        let weight = loader.prepare(
            &[(&name("mlp.gate_proj"), mlp_shape, mlp_shard.clone()), (&name("mlp.up_proj"), mlp_shape, mlp_shard)],
            KRanges::whole(hidden),
        )?;
        program.push(Op::Gemm { weight, input: h, output: gate_up, epilogue: Epilogue::default() });
        program.push(Op::SiluMul { input: gate_up, output: middle });
        let down =
            (&*name("mlp.down_proj"), [hidden, config.intermediate_size], Shard::columns(hidden, own.mlp.clone()));
        let weight = loader.prepare(&[down], mlp_ranges)?;
        program.row_parallel(weight, middle, &mlp_planes, rank, add_to_x, x);
    }
    let norm = loader.vector(FINAL_NORM, hidden)?;
    program.push(Op::GatherRows { input: x, output: last });
    program.push(Op::RmsNorm { input: last, weight: norm, eps, output: normed });
    program.push(Op::Sketch { input: normed });
    let head_name = if is_tied(config, weights) { EMBEDDING } else { HEAD };
    let head = if head_name == EMBEDDING && own.vocabulary.len() == vocabulary {
        table
    } else {
        let shard = Shard::rows(own.vocabulary.clone(), hidden);
        loader.prepare(&[(head_name, [vocabulary, hidden], shard)], KRanges::whole(hidden))?
    };
    let widths: Vec<usize> = split.shards.iter().map(|shard| shard.vocabulary.len()).collect();
    program.column_parallel_gathered(head, normed, &widths, rank, logits);
    Ok(program.finish(logits))
}

//! What a step's queries, keys and values go through between their product and attention (`append.cu`).

use super::super::driver::{CudaError, DevicePtr, Function, Launch};
use super::super::inputs::StepInputs;
use super::{Load, RowKernels};
use crate::backend::{KvDtype, KvSpec};
use crate::program::AttentionSpec;

/// Warps of a block, a head each.
pub(super) const WARPS: u32 = 4;

/// `[positions][pairs]` f32 each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RopeAddresses {
    pub pairs: usize,
    pub sine: DevicePtr,
    pub cosine: DevicePtr,
    /// Of long sequences, where they differ; else 0.
    pub long_sine: DevicePtr,
    pub long_cosine: DevicePtr,
}

/// Norms of heads, rotary embedding, and the cache's append, of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Append<'a> {
    pub spec: &'a AttentionSpec,
    pub kv: &'a KvSpec,
    pub layer: usize,
    /// `[rows][(query_heads + 2 kv_heads) × head_dim]` f32. Queries are turned in place; what is there of keys and values is
    /// left as it was.
    pub qkv: DevicePtr,
    /// Weights of the norms of query and key heads, and eps.
    pub norms: Option<(DevicePtr, DevicePtr, f32)>,
    pub rope: RopeAddresses,
    pub inputs: &'a StepInputs,
    pub cache: DevicePtr,
    /// Numbers of e4m3 in pairs, as the tensor cores' attention reads them (`kv_layout.cuh`).
    pub paired: bool,
}

/// `AppendParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct AppendParams {
    qkv: DevicePtr,
    query_weight: DevicePtr,
    key_weight: DevicePtr,
    sine: DevicePtr,
    cosine: DevicePtr,
    long_sine: DevicePtr,
    long_cosine: DevicePtr,
    positions: DevicePtr,
    sequence_of: DevicePtr,
    table_start: DevicePtr,
    flags: DevicePtr,
    block_tables: DevicePtr,
    count: DevicePtr,
    cache: DevicePtr,
    /// `KvShape`: layers, heads, values per head.
    shape: [u32; 3],
    layer: u32,
    query_heads: u32,
    pairs: u32,
    eps: f32,
    spare: u32,
}

/// Of heads up to 128 and up to 512 values; f32, bf16, int8, e4m3, e4m3 in pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Functions([[Function; 5]; 2]);

impl Functions {
    pub fn load(from: Load<'_>) -> Result<Self, CudaError> {
        let load = |form: &str, items: u32| from("append", &format!("append_{form}_{items}"));
        let all = |items| {
            let [float, half, integer] = [load("f32", items)?, load("bf16", items)?, load("int8", items)?];
            Ok::<_, CudaError>([float, half, integer, load("fp8", items)?, load("fp8_paired", items)?])
        };
        Ok(Self([all(4)?, all(16)?]))
    }
}

impl RowKernels {
    /// So many rows.
    pub fn append(&self, rows: usize, append: &Append<'_>) -> Launch {
        let Append { spec, kv, layer, qkv, norms, rope, inputs, cache, paired } = *append;
        let (query_weight, key_weight, eps) = norms.unwrap_or((0, 0, 0.0));
        let params = AppendParams {
            qkv,
            query_weight,
            key_weight,
            sine: rope.sine,
            cosine: rope.cosine,
            long_sine: rope.long_sine,
            long_cosine: rope.long_cosine,
            positions: inputs.positions,
            sequence_of: inputs.sequence_of,
            table_start: inputs.table_start,
            flags: inputs.flags,
            block_tables: inputs.block_tables,
            count: inputs.counts,
            cache,
            shape: [kv.layers as u32, kv.heads as u32, kv.head_dim as u32],
            layer: layer as u32,
            query_heads: spec.query_heads as u32,
            pairs: rope.pairs as u32,
            eps,
            spare: 0,
        };
        let form = match kv.dtype {
            KvDtype::F32 => 0,
            KvDtype::Bf16 => 1,
            KvDtype::Int8 => 2,
            KvDtype::Fp8 => 3 + usize::from(paired),
        };
        let function = &self.append.0[usize::from(spec.head_dim > 128)][form];
        let heads = (spec.query_heads + 2 * spec.kv_heads) as u32;
        Launch::new(function, [rows as u32, heads.div_ceil(WARPS), 1], 32 * WARPS, 0, params)
    }
}

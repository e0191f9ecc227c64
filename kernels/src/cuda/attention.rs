//! Attention of the `sm90-bf16` family over a paged cache of bf16, and the append before it; over one of e4m3, which is written by
//! the append of all families (`rows`, in pairs), the same attention of the values that it stands for.
//!
//! `kernels/cuda/attention_bf16.cuh` fixes the order of sums: splits of 256 absolute positions, each from nothing, folded
//! ascending. So how the work is cut ([`plan`]) changes no bit, and is chosen by what keeps the device busy.
//!
//! A step is planned once for all layers of one [`AttentionShape`]. Layers with a window may use the plan of the layers
//! without (pieces that lie before the window are skipped by the kernel), or one of their own.

use super::driver::{CudaError, Device, DevicePtr, Function, Launch};

mod plan;
#[cfg(test)]
mod tests;
mod tiles;

pub(crate) use self::plan::{PlanScratch, PlanSequence, Planner};
use self::tiles::{Block, NARROW_TILE, Tiles};
use crate::backend::KvDtype;

/// Positions of a split; every split is computed from nothing.
pub(crate) const SPLIT: u32 = 256;

/// Steps of at most so many rows launch the kernel of narrow tiles alone.
const NARROW_ROWS_MAX: usize = 64;

/// Form of the output rows; `RowForm` in `common.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputForm {
    /// `[rows][width]` f32.
    F32,
    /// Panels of 64 columns with room for so many rows.
    Bf16Tiled {
        /// Rows.
        row_capacity: u32,
    },
}

/// What all attention layers that share a plan have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionShape {
    pub query_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
}

impl AttentionShape {
    /// Query heads per KV head.
    pub fn group(&self) -> u32 {
        self.query_heads / self.kv_heads
    }
}

/// Why a shape has no kernel here; the exact family computes it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    /// Another cache.
    #[error("attention on tensor cores: a cache of {0:?} is none of Bf16, Fp8")]
    Cache(KvDtype),
    /// Another head dimension than those that were compiled.
    #[error("attention on tensor cores: head dimension {0} is none of 64, 80, 96, 128, 256")]
    HeadDim(u32),
    /// Query heads are no multiple of KV heads, or there are none.
    #[error("attention on tensor cores: {0} query heads over {1} KV heads")]
    Heads(u32, u32),
    /// A block asks for more shared memory than the device has.
    #[error(
        "attention on tensor cores: head dimension {head_dim} needs {needed} bytes of shared memory, {there} are there"
    )]
    Shared {
        /// Values of a head.
        head_dim: u32,
        /// Bytes.
        needed: u32,
        /// Bytes.
        there: u32,
    },
    /// Of the driver.
    #[error(transparent)]
    Driver(#[from] CudaError),
}

/// Mirrors `AttentionParams` in `attention_bf16.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct AttentionParams {
    query: DevicePtr,
    cache: DevicePtr,
    plan: DevicePtr,
    block_tables: DevicePtr,
    output: DevicePtr,
    partial_values: DevicePtr,
    partial_folds: DevicePtr,
    arrivals: DevicePtr,
    query_heads: u32,
    kv_heads: u32,
    layer: u32,
    layers: u32,
    window: u32,
    output_form: u32,
    row_capacity: u32,
    wide: u32,
    scale_log2: f32,
    cap_log2: f32,
    cap_slope: f32,
    spare: u32,
}

/// Mirrors `AppendParams` in `append_bf16.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct AppendParams {
    qkv: DevicePtr,
    query: DevicePtr,
    cache: DevicePtr,
    sine: DevicePtr,
    cosine: DevicePtr,
    long_sine: DevicePtr,
    long_cosine: DevicePtr,
    query_norm: DevicePtr,
    key_norm: DevicePtr,
    positions: DevicePtr,
    sequence_of: DevicePtr,
    table_start: DevicePtr,
    flags: DevicePtr,
    block_tables: DevicePtr,
    counts: DevicePtr,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    pairs: u32,
    layer: u32,
    layers: u32,
    eps: f32,
    span: u32,
}

/// Where a step's inputs lie; as `StepInputs` has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowInputs {
    /// `StepCounts`.
    pub counts: DevicePtr,
    /// By row.
    pub positions: DevicePtr,
    /// By row.
    pub sequence_of: DevicePtr,
    /// By sequence.
    pub table_start: DevicePtr,
    /// By sequence.
    pub flags: DevicePtr,
    /// All tables.
    pub block_tables: DevicePtr,
}

/// The cache, and which of its layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheLayer {
    /// First byte of the cache.
    pub cache: DevicePtr,
    /// This layer.
    pub layer: u32,
    /// Layers that keep keys and values.
    pub layers: u32,
}

/// Sines and cosines on the device, `[positions][pairs]` f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeTables {
    pub pairs: u32,
    pub sine: DevicePtr,
    pub cosine: DevicePtr,
    /// Of sequences that are said to be long, where they differ.
    pub long: Option<(DevicePtr, DevicePtr)>,
}

/// Norms of query and key heads: the vectors on the device, `[head_dim]` f32 each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNorms {
    pub query: DevicePtr,
    pub key: DevicePtr,
    pub eps: f32,
}

/// What one layer's attention reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionLayer {
    /// Over a cache of bf16 bf16 `[rows][query_heads × head_dim]`, as its append leaves it; over e4m3 f32
    /// `[rows][(query_heads + 2 kv_heads) × head_dim]`, turned.
    pub query: DevicePtr,
    pub cache: CacheLayer,
    pub plan: DevicePtr,
    pub block_tables: DevicePtr,
    pub output: DevicePtr,
    pub form: OutputForm,
    /// Multiplies scores; above 0.
    pub scale: f32,
    pub window: Option<u32>,
    pub soft_cap: Option<f32>,
}

/// Memory that the attention of a step needs; shared by all layers, since they follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionScratch {
    /// [`AttentionKernels::partial_value_bytes`].
    pub values: DevicePtr,
    /// [`AttentionKernels::partial_fold_bytes`].
    pub folds: DevicePtr,
    /// [`AttentionKernels::arrival_bytes`]; zeroed once, when it is allocated.
    pub arrivals: DevicePtr,
}

impl AttentionParams {
    fn new(shape: AttentionShape, layer: &AttentionLayer, scratch: &AttentionScratch, wide: bool) -> Self {
        let log2_e = std::f32::consts::LOG2_E;
        let (output_form, row_capacity) = match layer.form {
            OutputForm::F32 => (0, 0),
            OutputForm::Bf16Tiled { row_capacity } => (1, row_capacity),
        };
        let cap = layer.soft_cap.unwrap_or(0.0);
        Self {
            query: layer.query,
            cache: layer.cache.cache,
            plan: layer.plan,
            block_tables: layer.block_tables,
            output: layer.output,
            partial_values: scratch.values,
            partial_folds: scratch.folds,
            arrivals: scratch.arrivals,
            query_heads: shape.query_heads,
            kv_heads: shape.kv_heads,
            layer: layer.cache.layer,
            layers: layer.cache.layers,
            window: layer.window.unwrap_or(u32::MAX),
            output_form,
            row_capacity,
            wide: u32::from(wide),
            scale_log2: layer.scale * log2_e,
            cap_log2: cap * log2_e,
            cap_slope: if cap == 0.0 { 0.0 } else { 2.0 * layer.scale / cap * log2_e },
            spare: 0,
        }
    }
}

/// The kernels of one shape, and what their planner must know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionKernels {
    shape: AttentionShape,
    /// Narrow, wide.
    blocks: [Block; 2],
    plain: [Function; 2],
    capped: [Function; 2],
    /// Of a cache of bf16; for heads that are turned whole, where there is one.
    append: Function,
    append_whole: Option<Function>,
    planner: Planner,
}

impl AttentionKernels {
    /// Looks the kernels up. `partial_rows`: room for rows of splits that are computed beside each other; bounds the
    /// scratch memory.
    ///
    /// # Errors
    /// [`Unsupported`]: the caller takes the exact attention.
    pub fn new(device: &Device, shape: AttentionShape, cache: KvDtype, partial_rows: u32) -> Result<Self, Unsupported> {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        let tiles = Tiles::of(cache, head_dim)?;
        if kv_heads == 0 || query_heads == 0 || query_heads % kv_heads != 0 {
            return Err(Unsupported::Heads(query_heads, kv_heads));
        }
        let of = |wide: bool| {
            let own = if device.hopper() { Block::hopper(&tiles, wide) } else { None };
            own.unwrap_or_else(|| Block::portable(&tiles, wide))
        };
        Self::with_blocks(device, shape, &tiles, [of(false), of(true)], partial_rows)
    }

    fn with_blocks(
        device: &Device,
        shape: AttentionShape,
        tiles: &Tiles,
        blocks: [Block; 2],
        partial_rows: u32,
    ) -> Result<Self, Unsupported> {
        let (head_dim, there) = (shape.head_dim, device.shared_bytes_max());
        if let Some(needed) = blocks.iter().map(|block| block.shared_bytes).find(|&needed| needed > there) {
            return Err(Unsupported::Shared { head_dim, needed, there });
        }
        let kernels = |cap: &str| -> Result<[Function; 2], CudaError> {
            let [narrow, wide] = &blocks;
            Ok([narrow.kernel(device, tiles, false, cap)?, wide.kernel(device, tiles, true, cap)?])
        };
        // A block takes 1 KiB beside what it asks for, of a memory that is 1 KiB larger than one block may ask for.
        let at_once = |block: &Block| ((there + 1024) / (block.shared_bytes + 1024)).clamp(1, block.at_once);
        Ok(Self {
            shape,
            blocks,
            plain: kernels("")?,
            capped: kernels("_cap")?,
            append: device.function("append_bf16", "append_bf16")?,
            append_whole: match head_dim {
                64 | 128 => Some(device.function("append_bf16", &format!("append_bf16_{head_dim}"))?),
                _ => None,
            },
            planner: Planner {
                group: shape.group(),
                kv_heads: shape.kv_heads,
                wide_tile: 16 * tiles.wide_row_warps,
                blocks: blocks.each_ref().map(|block| device.multiprocessors() * at_once(block)),
                partial_rows,
            },
        })
    }

    /// The same by the kernels of all devices.
    #[cfg(test)]
    fn portable(&self, device: &Device) -> Result<Self, Unsupported> {
        // Only for a cache of bf16 there are others.
        let tiles = Tiles::of(KvDtype::Bf16, self.shape.head_dim)?;
        let blocks = [false, true].map(|wide| Block::portable(&tiles, wide));
        Self::with_blocks(device, self.shape, &tiles, blocks, self.planner.partial_rows)
    }

    /// Cuts a step's attention into pieces.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Bytes of [`AttentionScratch::values`].
    pub fn partial_value_bytes(&self) -> usize {
        self.partials() * self.shape.head_dim as usize * 4
    }

    /// Bytes of [`AttentionScratch::folds`].
    pub fn partial_fold_bytes(&self) -> usize {
        self.partials() * 8
    }

    /// Bytes of [`AttentionScratch::arrivals`].
    pub fn arrival_bytes(&self) -> usize {
        self.partials() * 4
    }

    fn partials(&self) -> usize {
        self.planner.partial_rows as usize * self.shape.kv_heads as usize
    }

    /// One layer's attention, for steps of up to `rows` rows and `sequences` sequences.
    pub fn attention(
        &self,
        layer: &AttentionLayer,
        scratch: &AttentionScratch,
        rows: usize,
        sequences: usize,
    ) -> Vec<Launch> {
        let functions = if layer.soft_cap.is_some() { &self.capped } else { &self.plain };
        let items = self.planner.items_max(rows, sequences);
        let launch = |wide: bool| {
            let which = usize::from(wide);
            let blocks = self.planner.blocks[which].min(items[which].saturating_mul(self.shape.kv_heads));
            let Block { threads, shared_bytes, .. } = self.blocks[which];
            let params = AttentionParams::new(self.shape, layer, scratch, wide);
            Launch::new(&functions[which], [blocks, 1, 1], threads, shared_bytes, params)
        };
        if rows > NARROW_ROWS_MAX { vec![launch(true), launch(false)] } else { vec![launch(false)] }
    }

    /// Norms and turns q and k of `qkv` (f32 `[rows][(query_heads + 2 kv_heads) × head_dim]`), appends k and v to the cache,
    /// and leaves q in bf16 at `query`.
    pub fn append(
        &self,
        inputs: &RowInputs,
        cache: &CacheLayer,
        rope: &RopeTables,
        norms: Option<HeadNorms>,
        [qkv, query]: [DevicePtr; 2],
        rows: usize,
    ) -> Launch {
        const WARPS: u32 = 4;
        let AttentionShape { query_heads, kv_heads, head_dim } = self.shape;
        let (long_sine, long_cosine) = rope.long.unwrap_or((rope.sine, rope.cosine));
        let heads = query_heads + 2 * kv_heads;
        let whole = self.append_whole.filter(|_| 2 * rope.pairs == head_dim);
        // Of many rows a warp takes several heads, whose turn is the same.
        let span = if whole.is_some() && rows > 64 { heads.div_ceil(4).min(8) } else { 1 };
        let heads_at_once = if whole.is_some() && head_dim == 64 { 2 } else { 1 };
        let groups = (rows as u32 * heads.div_ceil(span)).div_ceil(WARPS * heads_at_once);
        let params = AppendParams {
            qkv,
            query,
            cache: cache.cache,
            sine: rope.sine,
            cosine: rope.cosine,
            long_sine,
            long_cosine,
            query_norm: norms.map_or(0, |norms| norms.query),
            key_norm: norms.map_or(0, |norms| norms.key),
            positions: inputs.positions,
            sequence_of: inputs.sequence_of,
            table_start: inputs.table_start,
            flags: inputs.flags,
            block_tables: inputs.block_tables,
            counts: inputs.counts,
            query_heads,
            kv_heads,
            head_dim,
            pairs: rope.pairs,
            layer: cache.layer,
            layers: cache.layers,
            eps: norms.map_or(0.0, |norms| norms.eps),
            span,
        };
        Launch::new(&whole.unwrap_or(self.append), [groups, 1, 1], 32 * WARPS, 0, params)
    }
}

//! Exact attention: its geometry, and the plan that says which block of threads does what in a step.

use std::sync::Arc;

use super::{Call, ExactError};
use crate::backend::KvDtype;
use crate::cuda::driver::{Device, DevicePtr, Function, Launch};
use crate::program::AttentionSpec;
use crate::reference::ATTENTION_TILE;

/// Queries of an item: neighbouring rows × heads of one KV head.
const QUERIES: usize = 16;
/// The part of an item that writes its output itself.
const WHOLE: u32 = u32::MAX;

/// Some neighbouring rows of a sequence over some of their tiles: `AttentionItem` in `attention_exact.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttentionItem {
    first_row: u32,
    rows: u32,
    first_position: u32,
    table: u32,
    first_tile: u32,
    tiles: u32,
    part: u32,
    spare: u32,
}

impl AttentionItem {
    /// As it lies in a plan.
    pub fn words(&self) -> [u32; 8] {
        let Self { first_row, rows, first_position, table, first_tile, tiles, part, spare } = *self;
        [first_row, rows, first_position, table, first_tile, tiles, part, spare]
    }
}

/// A row whose tiles were computed apart: `AttentionMerge` in `attention_exact.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttentionMerge {
    row: u32,
    index: u32,
    first_part: u32,
    parts: u32,
}

impl AttentionMerge {
    /// As it lies in a plan.
    pub fn words(&self) -> [u32; 4] {
        [self.row, self.index, self.first_part, self.parts]
    }
}

/// A sequence's rows in a step, for the planner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedSequence {
    pub first_row: u32,
    pub rows: u32,
    pub first_position: u32,
    /// Where its block table begins.
    pub table: u32,
}

/// Sizes of an attention layer's plan, fixed at build. Layers of like heads and window share a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionPlan {
    /// Rows that an item may have.
    rows: u32,
    /// Blocks of threads per item: the grid's second dimension.
    heads: u32,
    window: Option<usize>,
    /// Parts that there is room for.
    parts: u32,
    /// Blocks of threads that fill the device.
    enough: u32,
    head_dim: usize,
}

impl AttentionPlan {
    /// For a device of so many multiprocessors.
    pub fn new(spec: &AttentionSpec, multiprocessors: u32) -> Self {
        let group = spec.query_heads / spec.kv_heads;
        let heads = (spec.kv_heads * group.div_ceil(QUERIES)) as u32;
        let enough = 8 * multiprocessors;
        let rows = (QUERIES / group).max(1) as u32;
        Self { rows, heads, window: spec.window, parts: 2 * enough, enough, head_dim: spec.head_dim }
    }

    /// The same plan, with every tile apart where there is room, or none.
    #[cfg(test)]
    pub fn forced(self, split: bool) -> Self {
        Self { enough: if split { u32::MAX } else { 0 }, ..self }
    }

    /// Most items of a step of so many rows and sequences.
    pub fn items_max(&self, rows: usize, sequences: usize) -> usize {
        rows.div_ceil(self.rows as usize) + sequences + self.parts as usize
    }

    /// Most merges of a step.
    pub fn merges_max(&self) -> usize {
        (self.parts * self.rows) as usize
    }

    /// Floats of the parts.
    pub fn partial_floats(&self) -> usize {
        self.parts as usize * self.heads as usize * QUERIES * (self.head_dim + 2)
    }

    /// Fills in items and merges (cleared before; no allocation within [`AttentionPlan::items_max`] and
    /// [`AttentionPlan::merges_max`]).
    ///
    /// A group of rows is one item over all its tiles if that makes enough blocks to fill the device, or if there is no room
    /// for its parts; else an item per tile. It does not matter for what comes out.
    pub fn fill(
        &self,
        sequences: &[PlannedSequence],
        items: &mut Vec<AttentionItem>,
        merges: &mut Vec<AttentionMerge>,
    ) {
        items.clear();
        merges.clear();
        let groups: u32 = sequences.iter().map(|sequence| sequence.rows.div_ceil(self.rows)).sum();
        let split = groups * self.heads < self.enough;
        let mut used = 0;
        for sequence in sequences {
            for start in (0..sequence.rows).step_by(self.rows as usize) {
                let rows = self.rows.min(sequence.rows - start);
                let (first_row, first_position) = (sequence.first_row + start, sequence.first_position + start);
                let seen = self.window.map_or(0, |window| (first_position as usize + 1).saturating_sub(window));
                let first_tile = (seen / ATTENTION_TILE) as u32;
                let last_tile = (first_position + rows - 1) / ATTENTION_TILE as u32;
                let tiles = last_tile - first_tile + 1;
                let whole = AttentionItem {
                    first_row,
                    rows,
                    first_position,
                    table: sequence.table,
                    first_tile,
                    tiles,
                    part: WHOLE,
                    spare: 0,
                };
                if !split || tiles == 1 || used + tiles > self.parts {
                    items.push(whole);
                    continue;
                }
                items.extend((0..tiles).map(|tile| AttentionItem {
                    first_tile: first_tile + tile,
                    tiles: 1,
                    part: used + tile,
                    ..whole
                }));
                merges.extend((0..rows).map(|index| AttentionMerge {
                    row: first_row + index,
                    index,
                    first_part: used,
                    parts: tiles,
                }));
                used += tiles;
            }
        }
    }
}

/// Parameters of the kernels: `ExactAttentionParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionParams {
    qkv: DevicePtr,
    cache: DevicePtr,
    items: DevicePtr,
    merges: DevicePtr,
    block_tables: DevicePtr,
    counts: DevicePtr,
    partial: DevicePtr,
    out: DevicePtr,
    out_quants: DevicePtr,
    out_scales: DevicePtr,
    layers: u32,
    heads: u32,
    head_dim: u32,
    layer: u32,
    query_heads: u32,
    window: u32,
    scale: f32,
    soft_cap: f32,
}

/// What a layer's attention reads and writes; addresses in the device's memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttentionIo {
    /// `[rows][(query_heads + 2 × kv_heads) × head_dim]` f32, turned and appended.
    pub qkv: DevicePtr,
    /// The KV cache (`kv_layout.cuh`).
    pub cache: DevicePtr,
    /// [`AttentionItem`]s and [`AttentionMerge`]s of the step; how many, `counts` says.
    pub items: DevicePtr,
    pub merges: DevicePtr,
    /// Of all sequences.
    pub block_tables: DevicePtr,
    pub counts: DevicePtr,
    /// [`AttentionPlan::partial_floats`] f32.
    pub partial: DevicePtr,
    /// `[rows][query_heads × head_dim]` f32; or 0, and `quants` and `scales` as rows of 8-bit activations.
    pub output: DevicePtr,
    pub quants: DevicePtr,
    pub scales: DevicePtr,
}

/// Kernel for a kind of cache and size of head, and its shared memory in bytes.
///
/// # Errors
/// [`ExactError::Unsupported`] if heads are no multiples of 16 or beyond 512.
pub(crate) fn kernel(dtype: KvDtype, head_dim: usize) -> Result<(&'static str, u32), ExactError> {
    if !head_dim.is_multiple_of(16) || head_dim == 0 || head_dim > 512 {
        let reason = format!("heads of {head_dim} values: CUDA takes multiples of 16 up to 512");
        return Err(ExactError::Unsupported(reason));
    }
    // Name, positions of a chunk and chunks of the ring, as in attention_exact.cu.
    let size = [128, 256, 512].into_iter().position(|most| head_dim <= most).unwrap_or(2);
    let (bytes, kernels) = match dtype {
        KvDtype::F32 => (4, [("attention_f32_128", 64, 4), ("attention_f32_256", 32, 3), ("attention_f32_512", 32, 2)]),
        KvDtype::Bf16 => {
            (2, [("attention_bf16_128", 64, 5), ("attention_bf16_256", 64, 3), ("attention_bf16_512", 32, 3)])
        }
        KvDtype::Int8 => {
            (1, [("attention_int8_128", 64, 9), ("attention_int8_256", 64, 4), ("attention_int8_512", 64, 3)])
        }
        KvDtype::Fp8 => (1, [("attention_fp8_128", 64, 9), ("attention_fp8_256", 64, 4), ("attention_fp8_512", 64, 3)]),
    };
    let (name, chunk, ring) = kernels[size];
    let scales = if bytes == 1 { 4 } else { 0 };
    let shared = ring * chunk * (head_dim * bytes + 16 + scales)
        + QUERIES * head_dim * 4
        + QUERIES * ATTENTION_TILE * 4
        + 7 * QUERIES * 4;
    Ok((name, shared as u32))
}

/// The items of a step of at most `rows` rows and `sequences` sequences, then the folds. `layers`: of the cache.
pub(crate) fn calls(
    (name, shared): (&'static str, u32),
    multiprocessors: u32,
    spec: &AttentionSpec,
    plan: &AttentionPlan,
    io: &AttentionIo,
    (layer, layers): (usize, usize),
    (rows, sequences): (usize, usize),
) -> [Call<AttentionParams>; 2] {
    let params = AttentionParams {
        qkv: io.qkv,
        cache: io.cache,
        items: io.items,
        merges: io.merges,
        block_tables: io.block_tables,
        counts: io.counts,
        partial: io.partial,
        out: io.output,
        out_quants: io.quants,
        out_scales: io.scales,
        layers: layers as u32,
        heads: spec.kv_heads as u32,
        head_dim: spec.head_dim as u32,
        layer: layer as u32,
        query_heads: spec.query_heads as u32,
        window: spec.window.unwrap_or(0) as u32,
        scale: spec.scale,
        soft_cap: spec.soft_cap.unwrap_or(0.0),
    };
    let module = "attention_exact";
    // Blocks go round over items: with few rows as many as run at once, with many more of them, since items are unlike.
    let width = if rows > 64 { 16 } else { 2 } * multiprocessors;
    let blocks = (plan.items_max(rows, sequences) as u32).min(width.div_ceil(plan.heads));
    let attention = Call { module, name, grid: [blocks, plan.heads, 1], block: 256, shared, params };
    let merges = (plan.merges_max() as u32).min(rows as u32).min(4096);
    let block = (spec.head_dim as u32 / 2).next_multiple_of(32);
    let grid = [merges, spec.query_heads as u32, 1];
    [attention, Call { module, name: "attention_fold", grid, block, shared: 0, params }]
}

/// The kernels for a kind of cache and size of head.
#[derive(Clone, Debug)]
pub(crate) struct ExactAttention {
    attention: Function,
    fold: Function,
    kernel: (&'static str, u32),
    multiprocessors: u32,
}

impl ExactAttention {
    /// # Errors
    /// [`ExactError::Unsupported`] if heads are no multiples of 16 or beyond 512, or the device has too little shared memory.
    pub fn new(device: &Arc<Device>, dtype: KvDtype, head_dim: usize) -> Result<Self, ExactError> {
        let (name, shared) = kernel(dtype, head_dim)?;
        if shared > device.shared_bytes_max() {
            let reason = format!("heads of {head_dim} values need {shared} bytes of shared memory, more than there is");
            return Err(ExactError::Unsupported(reason));
        }
        let attention = device.function("attention_exact", name)?;
        attention.allow_shared(shared)?;
        let fold = device.function("attention_exact", "attention_fold")?;
        Ok(Self { attention, fold, kernel: (name, shared), multiprocessors: device.multiprocessors() })
    }

    /// Whether [`AttentionIo::quants`] can be written: blocks of 32 must not cross heads.
    pub fn writes_quants(spec: &AttentionSpec) -> bool {
        spec.head_dim.is_multiple_of(32)
    }

    /// The launches: the items of a step of at most `rows` rows and `sequences` sequences, then the folds.
    ///
    /// `layers`: layers of the cache. Heads are of the size that [`ExactAttention::new`] was given.
    pub fn launches(
        &self,
        spec: &AttentionSpec,
        plan: &AttentionPlan,
        io: &AttentionIo,
        layer_of: (usize, usize),
        most: (usize, usize),
    ) -> [Launch; 2] {
        let [attention, fold] = calls(self.kernel, self.multiprocessors, spec, plan, io, layer_of, most);
        [attention.launch(&self.attention), fold.launch(&self.fold)]
    }
}

/// The tiles of a row, in the order in which they are folded.
#[cfg(test)]
pub(crate) fn tiles_of(row: u32, items: &[AttentionItem], merges: &[AttentionMerge]) -> Vec<u32> {
    let holds = |item: &&AttentionItem| (item.first_row..item.first_row + item.rows).contains(&row);
    let own: Vec<&AttentionItem> = items.iter().filter(holds).collect();
    let whole: Vec<_> = own.iter().filter(|item| item.part == WHOLE).collect();
    let merged: Vec<_> = merges.iter().filter(|merge| merge.row == row).collect();
    match (&whole[..], &merged[..]) {
        ([item], []) => (item.first_tile..item.first_tile + item.tiles).collect(),
        ([], [merge]) => (0..merge.parts)
            .map(|part| {
                let of: Vec<_> = own.iter().filter(|item| item.part == merge.first_part + part).collect();
                assert!(of.len() == 1 && of[0].tiles == 1 && of[0].first_row + merge.index == row);
                of[0].first_tile
            })
            .collect(),
        _ => panic!("row {row} is written {} times whole and {} times merged", whole.len(), merged.len()),
    }
}

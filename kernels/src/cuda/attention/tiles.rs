//! The kernels for each kind of cache and head dimension: where they are, and what a block of them has.

use super::{SPLIT, Unsupported};
use crate::backend::KvDtype;
use crate::cuda::driver::{CudaError, Device, Function};

/// One head dimension's kernels; mirrors the lists at the end of `attention_bf16.cu` and `attention_fp8.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    eight_bits: bool,
    head_dim: u32,
    /// Steps of 64 keys in shared memory: narrow, wide.
    stages: [u32; 2],
    /// Warps along the rows of a wide tile (16 rows each).
    pub wide_row_warps: u32,
    /// Blocks of narrow tiles that a multiprocessor holds by its registers.
    narrow_blocks: u32,
}

const fn tiles(eight_bits: bool, head_dim: u32, stages: [u32; 2], wide_row_warps: u32, narrow_blocks: u32) -> Tiles {
    Tiles { eight_bits, head_dim, stages, wide_row_warps, narrow_blocks }
}

const TILES: [Tiles; 10] = [
    tiles(false, 64, [4, 4], 8, 3),
    tiles(false, 80, [3, 3], 8, 3),
    tiles(false, 96, [2, 3], 8, 3),
    tiles(false, 128, [2, 3], 8, 3),
    tiles(false, 256, [2, 2], 4, 1),
    tiles(true, 64, [4, 4], 8, 3),
    tiles(true, 80, [4, 4], 8, 3),
    tiles(true, 96, [4, 4], 8, 3),
    tiles(true, 128, [3, 4], 8, 3),
    tiles(true, 256, [3, 3], 4, 1),
];

/// Head dimensions whose wide tiles have a kernel of their own on sm_90, and its steps of 64 keys in shared memory; mirrors
/// `Layout` and the list at the end of `attention_bf16_sm90a.cu`.
const WIDE_HOPPER: [(u32, u32); 2] = [(64, 8), (128, 4)];

/// The same of narrow tiles, and the halves of splits in shared memory: `attention_split_sm90a.cu`.
const SPLIT_HOPPER: [(u32, u32); 4] = [(64, 5), (80, 4), (96, 3), (128, 3)];

pub(super) const NARROW_TILE: u32 = 16;

impl Tiles {
    /// # Errors
    /// [`Unsupported`]: there is none for such a cache or such heads.
    pub fn of(cache: KvDtype, head_dim: u32) -> Result<Self, Unsupported> {
        let eight_bits = match cache {
            KvDtype::Bf16 => false,
            KvDtype::Fp8 => true,
            other => return Err(Unsupported::Cache(other)),
        };
        let found = TILES.iter().find(|tiles| (tiles.eight_bits, tiles.head_dim) == (eight_bits, head_dim));
        found.copied().ok_or(Unsupported::HeadDim(head_dim))
    }

    /// Bytes of shared memory of a block: its rows of queries, and the ring of keys and values. Rows of bf16 are padded by 16
    /// bytes, those of bytes to an odd number of 16 of them; behind these are scales.
    fn shared_bytes(&self, wide: bool) -> u32 {
        let rows = if wide { 16 * self.wide_row_warps } else { NARROW_TILE };
        let query = 2 * self.head_dim + 16;
        let kept = if self.eight_bits { ((self.head_dim / 16) | 1) * 16 + 4 } else { query };
        rows * query + self.stages[usize::from(wide)] * 2 * 64 * kept
    }

    /// What the names of its kernels begin with; the file of those of all devices.
    fn module(&self) -> &'static str {
        if self.eight_bits { "attention_fp8" } else { "attention_bf16" }
    }
}

/// Where the kernel of narrow or wide tiles is, and what a block of it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub module: &'static str,
    pub threads: u32,
    pub shared_bytes: u32,
    /// How many a multiprocessor holds by its registers.
    pub at_once: u32,
}

impl Block {
    /// The kernel of all devices.
    pub fn portable(tiles: &Tiles, wide: bool) -> Self {
        let (threads, at_once) = if wide { (256, 1) } else { (128, tiles.narrow_blocks) };
        Self { module: tiles.module(), threads, shared_bytes: tiles.shared_bytes(wide), at_once }
    }

    /// That of sm_90, where there is one.
    pub fn hopper(tiles: &Tiles, wide: bool) -> Option<Self> {
        if tiles.eight_bits {
            return None;
        }
        let dim = tiles.head_dim;
        let of = |list: &[(u32, u32)]| list.iter().find(|(head_dim, _)| *head_dim == dim).map(|(_, stages)| *stages);
        let (module, shared_bytes) = if wide {
            // Queries, the ring, and f32 totals, at a multiple of 1024 bytes.
            let stages = of(&WIDE_HOPPER)?;
            ("attention_bf16_sm90a", 1024 + 128 * dim * 2 + stages * 2 * 64 * dim * 2 + 128 * dim * 4)
        } else {
            // Halves of splits with room for queries behind them; weights of 16 rows; maxima of 8 warps.
            let slots = of(&SPLIT_HOPPER)?;
            let half = (SPLIT + NARROW_TILE) * (2 * dim + 16);
            ("attention_split_sm90a", slots * half + NARROW_TILE * (2 * SPLIT + 16) + 8 * NARROW_TILE * 4)
        };
        Some(Self { module, threads: 384, shared_bytes, at_once: 1 })
    }

    /// Name of its kernel; `cap`: for scores with a soft cap.
    pub fn name(tiles: &Tiles, wide: bool, cap: &str) -> String {
        format!("{}_{}_{}{cap}", tiles.module(), tiles.head_dim, if wide { "wide" } else { "narrow" })
    }

    pub fn kernel(&self, device: &Device, tiles: &Tiles, wide: bool, cap: &str) -> Result<Function, CudaError> {
        let function = device.function(self.module, &Self::name(tiles, wide, cap))?;
        function.allow_shared(self.shared_bytes)?;
        Ok(function)
    }
}

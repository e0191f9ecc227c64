//! Which block takes which outputs and tokens.

use super::{GemmShape, Numbers, TILE};

/// Variants by `wgmma`: tokens of an instruction, consumer warpgroups.
pub(super) const WGMMA: [(u32, u32); 11] =
    [(8, 1), (8, 2), (16, 1), (16, 2), (32, 1), (32, 4), (64, 1), (64, 4), (128, 1), (128, 2), (256, 2)];
/// The same of weights of e4m3, which take more registers.
pub(super) const WGMMA_FP8: [(u32, u32); 11] =
    [(8, 1), (8, 2), (16, 1), (16, 2), (32, 1), (32, 4), (64, 1), (64, 2), (128, 1), (128, 2), (256, 2)];
/// Variants by `mma.sync`: tokens, one.
pub(super) const MMA: [(u32, u32); 3] = [(8, 1), (32, 1), (64, 1)];

/// Those of a weight's form.
pub(super) const fn variants(numbers: Numbers, wgmma: bool) -> &'static [(u32, u32)] {
    match (numbers, wgmma) {
        (_, false) => &MMA,
        (Numbers::Bf16, true) => &WGMMA,
        (Numbers::Fp8, true) => &WGMMA_FP8,
    }
}

/// Bytes of a block's barriers, which are static shared memory.
const BARRIER_BYTES: u32 = 256;
/// Most stages of a ring.
const STAGES_MAX: u32 = 16;

/// What matters of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Blocks that run at once, one on each.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may have.
    pub shared_bytes: u32,
    /// Whether it has `wgmma`.
    pub wgmma: bool,
}

impl Machine {
    /// What one of `groups` products that run at once has of it.
    pub(super) fn shared_by(self, groups: usize) -> Self {
        // Some groups have no rows, some many: a few more blocks than multiprocessors.
        let blocks = (3 * self.multiprocessors / 2) / groups.max(1) as u32;
        Self { multiprocessors: blocks.clamp(1, self.multiprocessors), ..self }
    }

    /// Most dynamic shared memory of a variant.
    pub(super) fn dynamic_shared(&self, numbers: Numbers, tokens: u32) -> u32 {
        if self.wgmma { self.shared_bytes - BARRIER_BYTES } else { mma_shared(numbers, tokens) }
    }
}

/// Choices that may be overridden, for measurements; none changes a bit, but `plain` (another family of instructions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuning {
    /// `mma.sync` even where there is `wgmma`.
    pub plain: bool,
    /// Most blocks of a cluster when weights are streamed.
    pub stream_cluster: u32,
    /// Most blocks of a cluster when tiles are taken.
    pub tile_cluster: u32,
    /// Bytes of the ring of a stream of at most 16 tokens: small enough that the next kernel's ring has room beside it.
    pub ring_bytes: u32,
    /// Bytes of the ring of a stream of more.
    pub wide_ring_bytes: u32,
    /// Bytes that a stage should have at least.
    pub stage_bytes: u32,
    /// Only this variant (tokens, warpgroups), streaming or not.
    pub only: Option<(u32, u32, bool)>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            plain: false,
            stream_cluster: 1,
            tile_cluster: 1,
            ring_bytes: 104 * 1024,
            wide_ring_bytes: 192 * 1024,
            stage_bytes: 32 * 1024,
            only: None,
        }
    }
}

impl Tuning {
    /// Defaults, changed by `POLYLINK_GEMM`: words `plain`, `no-cluster`.
    pub fn from_environment() -> Self {
        let mut tuning = Self::default();
        for word in std::env::var("POLYLINK_GEMM").unwrap_or_default().split(',') {
            match word {
                "plain" => tuning.plain = true,
                "no-cluster" => (tuning.stream_cluster, tuning.tile_cluster) = (1, 1),
                _ => {}
            }
        }
        tuning
    }
}

/// A kernel's geometry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Tokens of an instruction.
    pub tokens: u32,
    /// Consumer warpgroups of a block.
    pub groups: u32,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared: u32,
    /// Blocks take their share of the outputs, not tiles.
    pub stream: bool,
    /// Units of outputs that are shared out.
    pub units: u32,
    /// Outputs of a unit.
    pub unit_rows: u32,
    /// Pieces of a block's share.
    pub passes: u32,
    /// Outputs of a piece, at most.
    pub pass_rows: u32,
    /// k tiles of a stage: 1, 2 or 4, a divisor of all.
    pub stage_k_tiles: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Token tiles that are walked before the next outputs.
    pub group: u32,
}

/// Bytes through which a warpgroup's results go (`gemm_epilogue.cuh`).
fn staging_bytes(tokens: u32) -> u32 {
    tokens.min(32) * 68 * 4
}

/// Of e4m3 a k tile's stage has the scales of both that lie together.
fn mma_shared(numbers: Numbers, tokens: u32) -> u32 {
    let weights = match numbers {
        Numbers::Bf16 => 8192,
        Numbers::Fp8 => 8 * (512 + 32),
    };
    staging_bytes(tokens) + 4 * (weights + tokens * 128)
}

impl Geometry {
    /// For a weight and the most rows of a bucket.
    pub fn choose(shape: GemmShape, rows_max: usize, machine: Machine, tuning: &Tuning) -> Self {
        Self::choose_for(shape, rows_max, rows_max, machine, tuning)
    }

    /// Right for up to `rows_max` rows, good for `rows`.
    pub(super) fn choose_for(
        shape: GemmShape,
        rows_max: usize,
        rows: usize,
        machine: Machine,
        tuning: &Tuning,
    ) -> Self {
        let [rows_max, rows] = [rows_max, rows].map(|rows| rows.max(1) as u32);
        if !machine.wgmma {
            return Self::plain(shape, rows_max);
        }
        let mut best: Option<(f64, Self)> = None;
        for &(tokens, groups) in variants(shape.numbers, true) {
            for stream in [true, false] {
                if tuning.only.is_some_and(|only| only != (tokens, groups, stream)) || (stream && rows_max > tokens) {
                    continue;
                }
                let candidate = if stream {
                    Self::streaming(shape, tokens, groups, machine, tuning)
                } else {
                    Self::tiled(shape, rows, tokens, groups, machine, tuning)
                };
                let cost = candidate.clocks(shape, rows, machine);
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, candidate));
                }
            }
        }
        best.map(|(_, geometry)| geometry).expect("tiles of any variant take any number of rows")
    }

    fn plain(shape: GemmShape, rows: u32) -> Self {
        let (tokens, groups) = MMA.into_iter().find(|(tokens, _)| rows <= *tokens).unwrap_or(MMA[MMA.len() - 1]);
        let grid = [(shape.padded_outputs() / TILE) as u32, rows.div_ceil(tokens), 1];
        Self {
            tokens,
            groups,
            grid,
            threads: 128,
            shared: mma_shared(shape.numbers, tokens),
            cluster: 1,
            ..Self::default()
        }
    }

    fn streaming(shape: GemmShape, tokens: u32, groups: u32, machine: Machine, tuning: &Tuning) -> Self {
        let unit_rows = if shape.gated { 16 } else { 8 };
        let units = shape.padded_outputs() as u32 / unit_rows;
        let share = units.div_ceil(machine.multiprocessors);
        let blocks = units.div_ceil(share);
        let passes = (share * unit_rows).div_ceil(64 * groups);
        let pass_rows = share.div_ceil(passes) * unit_rows;
        let ring = if tokens <= 16 { tuning.ring_bytes } else { tuning.wide_ring_bytes };
        let most = if tokens >= 32 && pass_rows <= 64 { tuning.stream_cluster } else { 1 };
        let cluster = [8, 4, 2].into_iter().find(|&c| c <= most && blocks.is_multiple_of(c)).unwrap_or(1);
        let partial = Self {
            tokens,
            groups,
            grid: [blocks, 1, 1],
            stream: true,
            units,
            unit_rows,
            passes,
            pass_rows,
            cluster,
            group: 1,
            ..Self::default()
        };
        partial.with_ring(shape, ring, tuning.stage_bytes, machine)
    }

    fn tiled(shape: GemmShape, rows: u32, tokens: u32, groups: u32, machine: Machine, tuning: &Tuning) -> Self {
        let row_blocks = (shape.padded_outputs() as u32).div_ceil(64 * groups);
        let pairs = tokens == 256 && row_blocks > 1 && machine.multiprocessors > 1;
        let cluster = if pairs { tuning.tile_cluster.clamp(1, 2) } else { 1 };
        let tiles = row_blocks.div_ceil(cluster) * rows.div_ceil(tokens);
        let blocks = tiles.min(machine.multiprocessors / cluster) * cluster;
        let partial = Self {
            tokens,
            groups,
            grid: [blocks, 1, 1],
            unit_rows: 8,
            passes: 1,
            pass_rows: 64 * groups,
            cluster,
            group: (2048 / tokens).max(1),
            ..Self::default()
        };
        partial.with_ring(shape, machine.shared_bytes, tuning.stage_bytes, machine)
    }

    /// Fills in what depends on shared memory.
    fn with_ring(mut self, shape: GemmShape, ring: u32, stage_bytes: u32, machine: Machine) -> Self {
        let (numbers, depth) = (shape.numbers, shape.numbers.depth() as u32);
        let k_tile_bytes = self.pass_rows * numbers.row_bytes() as u32 + self.tokens * 128;
        // Instructions read 64 rows per warpgroup; those beyond a pass may lie behind the last stage.
        let beyond = match numbers {
            Numbers::Bf16 => (64 * self.groups - self.pass_rows) * 128,
            Numbers::Fp8 => 0,
        };
        let fixed = self.groups * staging_bytes(self.tokens) + 1024 + beyond;
        let room = (machine.shared_bytes - BARRIER_BYTES - fixed).min(ring);
        let k_tiles = shape.k_tiles() as u32;
        let most = (stage_bytes / k_tile_bytes).max(1);
        self.stage_k_tiles = [4, 2].into_iter().find(|&k| k <= most && k_tiles.is_multiple_of(k)).unwrap_or(depth);
        let stage = (self.stage_k_tiles * k_tile_bytes).next_multiple_of(1024);
        self.stages = (room / stage).clamp(1, STAGES_MAX);
        self.shared = fixed + self.stages * stage;
        self.threads = 128 * self.groups + if self.tokens == 256 { 128 } else { 64 };
        self
    }

    /// Roughly, for the choice among variants: clocks of a multiprocessor for arithmetic, for shared memory, and for what
    /// comes through the L2 cache, of which a multiprocessor is taken to get 40 bytes.
    fn clocks(&self, shape: GemmShape, rows: u32, machine: Machine) -> f64 {
        let steps = 4.0 * shape.k_tiles() as f64;
        let (groups, tokens) = (f64::from(self.groups), f64::from(self.tokens));
        let mut instruction = (groups * tokens / 2.0).max(groups * (2048.0 + 32.0 * tokens) / 128.0).max(24.0);
        if shape.numbers == Numbers::Fp8 {
            // About 4 operations of 128 lanes for each of 16 × 64 numbers.
            instruction = instruction.max(32.0 * groups);
        }
        let (turns, read_rows, read_tokens) = if self.stream {
            (f64::from(self.passes), f64::from(self.pass_rows), f64::from(rows.min(self.tokens)))
        } else {
            let row_blocks = (shape.padded_outputs() as u32).div_ceil(64 * self.groups * self.cluster);
            let tiles = row_blocks * rows.div_ceil(self.tokens);
            let clusters = (machine.multiprocessors / self.cluster).max(1);
            (f64::from(tiles.div_ceil(clusters)), 64.0 * groups, tokens)
        };
        let row_bytes = shape.numbers.row_bytes() as f64;
        let bytes = steps / 4.0 * (row_bytes * read_rows + 128.0 * read_tokens / f64::from(self.cluster));
        let fixed = 1000.0 + 12.0 * tokens;
        turns * (fixed + (steps * instruction).max(bytes / 40.0))
    }
}

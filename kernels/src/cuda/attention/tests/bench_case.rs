//! A random attention problem with its cache on the device: poison wherever nobody may look.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use polylink_protocol::exact_math::{bf16_to_f32, f32_to_bf16};

use super::super::*;
use crate::cuda::backend::BLOCK_TOKENS;
use crate::cuda::driver::{Device, DeviceBuffer};

/// A NaN of bf16.
pub const POISON: u16 = 0xffff;

/// Random numbers (splitmix64).
pub struct Random(u64);

impl Random {
    /// Another one each time; its seed is printed.
    pub fn fresh(what: &str) -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        println!("{what}: seed {seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u32) -> u32 {
        (self.next() % u64::from(end)) as u32
    }

    /// −1 … 1, nearer to 0 more often.
    pub fn value(&mut self) -> f32 {
        let word = self.next();
        let of = |bits: u64| (bits & 0xff_ffff) as f32 / 16_777_216.0;
        of(word) - of(word >> 24)
    }

    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

/// A problem.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    /// Query heads, KV heads, values of a head.
    pub shape: (u32, u32, u32),
    pub window: Option<u32>,
    pub soft_cap: Option<f32>,
    /// Magnitude of the queries: how sharply weights differ.
    pub spread: f32,
    /// First position and rows of each sequence.
    pub sequences: Vec<(u32, u32)>,
}

/// Neighbouring rows of one sequence: its number, its first row there, rows.
pub type Pick = (usize, u32, u32);

/// How a run is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Rows that the launches are made for; more than 64: with wide tiles.
    pub rows: usize,
    /// Another planner: blocks of both kinds, partial rows.
    pub planner: Option<(u32, u32)>,
    /// The plan knows the window.
    pub plan_window: bool,
    pub tiled: bool,
    /// By the wide tiles of all devices.
    pub portable: bool,
}

impl Cut {
    pub fn plain(rows: usize) -> Self {
        Self { rows, planner: None, plan_window: true, tiled: false, portable: false }
    }
}

pub struct Bench {
    pub device: Arc<Device>,
    pub case: Case,
    pub kernels: AttentionKernels,
    pub cache: Vec<u16>,
    cache_device: DeviceBuffer,
    /// Of each sequence: `[rows][query_heads × head_dim]`.
    queries: Vec<Vec<u16>>,
    tables: Vec<u32>,
    table_starts: Vec<u32>,
    tables_device: DeviceBuffer,
    values: DeviceBuffer,
    folds: DeviceBuffer,
    arrivals: DeviceBuffer,
}

pub const LAYERS: u32 = 2;
pub const LAYER: u32 = 1;
const PARTIAL_ROWS: u32 = 16_384;

impl Bench {
    pub fn new(device: &Arc<Device>, case: &Case, random: &mut Random) -> Self {
        let (query_heads, kv_heads, head_dim) = case.shape;
        let shape = AttentionShape { query_heads, kv_heads, head_dim };
        let kernels = AttentionKernels::new(device, shape, KvDtype::Bf16, PARTIAL_ROWS).unwrap();
        let needed: Vec<u32> =
            case.sequences.iter().map(|(first, rows)| (first + rows).div_ceil(BLOCK_TOKENS as u32)).collect();
        let total = needed.iter().sum::<u32>();
        let mut blocks: Vec<u32> = (0..total + 3).collect();
        random.shuffle(&mut blocks);
        let (mut tables, mut table_starts) = (Vec::new(), Vec::new());
        for (index, count) in needed.iter().enumerate() {
            tables.extend((0..index as u32).map(|_| 0)); // a gap, so that starts are not what one would guess
            table_starts.push(tables.len() as u32);
            tables.extend(blocks.drain(..*count as usize));
        }
        let per_head = BLOCK_TOKENS * head_dim as usize;
        let per_block = (LAYERS * 2 * kv_heads) as usize * per_head;
        let mut cache = vec![POISON; (total as usize + 3) * per_block];
        let mut queries = Vec::new();
        for (index, &(first, rows)) in case.sequences.iter().enumerate() {
            let seen = case.window.map_or(0, |window| (first + 1).saturating_sub(window));
            for position in seen..first + rows {
                for part in 0..2 {
                    for head in 0..kv_heads {
                        let at = Self::place(case.shape, &tables[table_starts[index] as usize..], part, head, position);
                        cache[at..at + head_dim as usize].fill_with(|| f32_to_bf16(random.value() * 2.0));
                    }
                }
            }
            let count = (rows * query_heads * head_dim) as usize;
            queries.push((0..count).map(|_| f32_to_bf16(random.value() * case.spread)).collect());
        }
        let zeroed = |bytes: usize, byte: u8| {
            let buffer = device.alloc(bytes).unwrap();
            buffer.fill(byte).unwrap();
            buffer
        };
        Self {
            device: Arc::clone(device),
            case: case.clone(),
            cache_device: device.from_slice(&cache).unwrap(),
            tables_device: device.from_slice(&tables).unwrap(),
            values: zeroed(kernels.partial_value_bytes(), 0xff),
            folds: zeroed(kernels.partial_fold_bytes(), 0xff),
            arrivals: zeroed(kernels.arrival_bytes(), 0),
            kernels,
            cache,
            queries,
            tables,
            table_starts,
        }
    }

    /// First value of a key (part 0) or value (part 1) in the cache.
    fn place(shape: (u32, u32, u32), table: &[u32], part: u32, head: u32, position: u32) -> usize {
        let (_, kv_heads, dim) = shape;
        let (block, token) = (table[position as usize / BLOCK_TOKENS], position % BLOCK_TOKENS as u32);
        ((((block * LAYERS + LAYER) * 2 + part) * kv_heads + head) as usize * BLOCK_TOKENS + token as usize)
            * dim as usize
    }

    pub fn width(&self) -> usize {
        (self.case.shape.0 * self.case.shape.2) as usize
    }

    /// All rows of all sequences.
    pub fn everything(&self) -> Vec<Pick> {
        self.case.sequences.iter().enumerate().map(|(index, (_, rows))| (index, 0, *rows)).collect()
    }

    /// Computes these rows in one step: `[rows][query_heads × head_dim]`. Rows beyond are checked to be left alone.
    pub fn run(&self, picks: &[Pick], cut: &Cut) -> Vec<f32> {
        let rows: usize = picks.iter().map(|(_, _, rows)| *rows as usize).sum();
        let (width, device) = (self.width(), &self.device);
        let mut kernels = if cut.portable { self.kernels.portable(device).unwrap() } else { self.kernels };
        if let Some((blocks, partial_rows)) = cut.planner {
            kernels.planner = Planner { blocks: [blocks; 2], partial_rows, ..kernels.planner };
        }
        let mut query = Vec::new();
        for &(sequence, first, rows) in picks {
            query.extend_from_slice(&self.queries[sequence][first as usize * width..][..rows as usize * width]);
        }
        query.resize(cut.rows.max(rows) * width, POISON);
        let bucket = (cut.rows.max(rows), picks.len() + 1);
        let planner = kernels.planner;
        let mut words = vec![u32::MAX; planner.words_max(bucket.0, bucket.1)];
        let sequences = picks.iter().map(|&(sequence, first, rows)| PlanSequence {
            first_position: self.case.sequences[sequence].0 + first,
            rows,
            table_start: self.table_starts[sequence],
        });
        let window = if cut.plan_window { self.case.window } else { None };
        planner.plan(sequences, window, bucket, &mut PlanScratch::default(), &mut words);
        let row_capacity = (bucket.0 as u32).next_multiple_of(256);
        let bytes =
            if cut.tiled { row_capacity as usize * width.next_multiple_of(64) * 2 } else { bucket.0 * width * 4 };
        let (query, plan) = (device.from_slice(&query).unwrap(), device.from_slice(&words).unwrap());
        let output = device.alloc(bytes).unwrap();
        output.fill(0xff).unwrap();
        let layer = AttentionLayer {
            query: query.ptr(),
            cache: CacheLayer { cache: self.cache_device.ptr(), layer: LAYER, layers: LAYERS },
            plan: plan.ptr(),
            block_tables: self.tables_device.ptr(),
            output: output.ptr(),
            form: if cut.tiled { OutputForm::Bf16Tiled { row_capacity } } else { OutputForm::F32 },
            scale: 1.0 / (self.case.shape.2 as f32).sqrt(),
            window: self.case.window,
            soft_cap: self.case.soft_cap,
        };
        let scratch =
            AttentionScratch { values: self.values.ptr(), folds: self.folds.ptr(), arrivals: self.arrivals.ptr() };
        for launch in kernels.attention(&layer, &scratch, bucket.0, bucket.1) {
            launch.run(device).unwrap();
        }
        device.synchronize().unwrap_or_else(|error| panic!("{}: {cut:?}: {error}", self.case.name));
        let left: Vec<u32> = self.arrivals.read(0, self.kernels.arrival_bytes() / 4).unwrap();
        assert!(left.iter().all(|&count| count == 0), "{}: {cut:?}: arrivals are left", self.case.name);
        if cut.tiled {
            let values: Vec<u16> = output.read(0, bytes / 2).unwrap();
            let at = |row: usize, column: usize| {
                let panel = column / 64 * row_capacity as usize * 64 + row * 64;
                values[panel + ((column / 8 % 8) ^ (row % 8)) * 8 + column % 8]
            };
            (0..rows * width).map(|i| bf16_to_f32(at(i / width, i % width))).collect()
        } else {
            let mut values: Vec<f32> = output.read(0, bytes / 4).unwrap();
            let beyond = values.split_off(rows * width);
            assert!(beyond.iter().all(|v| v.to_bits() == u32::MAX), "{}: {cut:?}: rows beyond", self.case.name);
            values
        }
    }

    /// A row by f64: the output of each query head, and Σ p·|v| beside each value.
    pub fn expected(&self, sequence: usize, row: u32) -> Vec<(f64, f64)> {
        let (query_heads, kv_heads, dim) = self.case.shape;
        let position = self.case.sequences[sequence].0 + row;
        let begin = self.case.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let table = &self.tables[self.table_starts[sequence] as usize..];
        let scale = 1.0 / f64::from(dim).sqrt();
        let mut output = Vec::new();
        for head in 0..query_heads {
            let query = &self.queries[sequence][((row * query_heads + head) * dim) as usize..][..dim as usize];
            let query: Vec<f64> = query.iter().map(|&q| f64::from(bf16_to_f32(q))).collect();
            let of = |part, at| {
                let place = Self::place(self.case.shape, table, part, head / (query_heads / kv_heads), at);
                self.cache[place..place + dim as usize].iter().map(|&v| f64::from(bf16_to_f32(v)))
            };
            let scores: Vec<f64> = (begin..=position)
                .map(|at| {
                    let score = of(0, at).zip(&query).map(|(k, q)| k * q).sum::<f64>() * scale;
                    self.case.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
            let mut values = vec![(0.0, 0.0); dim as usize];
            for (at, score) in (begin..=position).zip(scores) {
                let p = (score - highest).exp() / total;
                for (sum, v) in values.iter_mut().zip(of(1, at)) {
                    sum.0 += p * v;
                    sum.1 += p * v.abs();
                }
            }
            output.extend(values);
        }
        output
    }
}

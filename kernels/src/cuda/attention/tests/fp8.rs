//! Attention over a cache of e4m3 has the bits of attention over the same values in bf16, on a device or under the emulator;
//! and both are near attention in f64.

use polylink_protocol::exact_math::{bf16_to_f32, e4m3_to_f32, f32_to_bf16};

use super::super::*;
use super::bench_case::{Case, LAYER, LAYERS, POISON, Random};
use crate::cuda::backend::BLOCK_TOKENS;
use crate::cuda::exact::Call;
use crate::cuda::exact::tests::machine::{Emulated, Machine, Memory};
use crate::quantise;

/// Keys and values of a problem as both caches hold them, and its queries.
struct Problem {
    case: Case,
    tables: Vec<u32>,
    starts: Vec<u32>,
    eight: Vec<u8>,
    half: Vec<u16>,
    /// `[rows][(query_heads + 2 kv_heads) × head_dim]`, NaN where keys and values would lie.
    qkv: Vec<f32>,
}

/// How a run is cut: rows that launches are made for, blocks, room for rows of splits beside each other.
#[derive(Clone, Copy, Debug)]
struct Cut(usize, u32, u32);

impl Problem {
    fn new(case: Case, random: &mut Random) -> Self {
        let (query_heads, kv_heads, dim) = case.shape;
        let tokens = BLOCK_TOKENS as u32;
        let needed: Vec<u32> = case.sequences.iter().map(|(first, rows)| (first + rows).div_ceil(tokens)).collect();
        let total = needed.iter().sum::<u32>() + 2;
        let mut blocks: Vec<u32> = (0..total).collect();
        random.shuffle(&mut blocks);
        let parts = (total * LAYERS * 2 * kv_heads) as usize;
        let (width, rows) = (dim as usize, case.sequences.iter().map(|(_, rows)| *rows as usize).sum::<usize>());
        let part_bytes = BLOCK_TOKENS * (width + 4);
        let (mut eight, mut half) = (vec![0xff; parts * part_bytes], vec![POISON; parts * BLOCK_TOKENS * width]);
        let (mut tables, mut starts) = (Vec::new(), Vec::new());
        for (&(first, rows), count) in case.sequences.iter().zip(needed) {
            starts.push(tables.len() as u32);
            tables.extend(blocks.drain(..count as usize));
            let own = &tables[*starts.last().unwrap() as usize..];
            for position in 0..first + rows {
                for (part, head) in (0..2).flat_map(|part| (0..kv_heads).map(move |head| (part, head))) {
                    let (block, token) = (own[(position / tokens) as usize], (position % tokens) as usize);
                    let number = (((block * LAYERS + LAYER) * 2 + part) * kv_heads + head) as usize;
                    // Powers of two of all kinds, and now and then nothing but zeros.
                    let size = [1.0, 1.0, 0.001, 30.0, 0.0][random.below(5) as usize];
                    let values: Vec<f32> = (0..dim).map(|_| random.value() * size).collect();
                    let mut numbers = vec![0; width];
                    let scale = quantise::vector_e4m3(&values, &mut numbers);
                    let start = number * part_bytes;
                    eight[start + BLOCK_TOKENS * width + 4 * token..][..4].copy_from_slice(&scale.to_le_bytes());
                    for (d, &byte) in numbers.iter().enumerate() {
                        eight[start + token * width + d / 16 * 16 + d % 8 * 2 + d % 16 / 8] = byte;
                        let value = e4m3_to_f32(byte) * scale;
                        let bits = f32_to_bf16(value);
                        assert_eq!(bf16_to_f32(bits), value, "bf16 holds {value:e}");
                        half[(number * BLOCK_TOKENS + token) * width + d] = bits;
                    }
                }
            }
        }
        let (per_row, queries) = ((query_heads + 2 * kv_heads) as usize * width, query_heads as usize * width);
        let mut qkv = vec![f32::NAN; rows * per_row];
        for row in qkv.chunks_mut(per_row) {
            row[..queries].fill_with(|| random.value() * case.spread);
        }
        Self { case, tables, starts, eight, half, qkv }
    }

    fn width(&self) -> usize {
        (self.case.shape.0 * self.case.shape.2) as usize
    }

    fn queries(&self) -> impl Iterator<Item = &[f32]> {
        let (query_heads, kv_heads, dim) = self.case.shape;
        self.qkv.chunks(((query_heads + 2 * kv_heads) * dim) as usize).map(|row| &row[..self.width()])
    }

    /// `[rows][query_heads × head_dim]` by the kernels of all devices.
    fn run(&self, machine: &Machine, cache: KvDtype, Cut(rows, blocks, partial_rows): Cut) -> Vec<f32> {
        let (query_heads, kv_heads, head_dim) = self.case.shape;
        let shape = AttentionShape { query_heads, kv_heads, head_dim };
        let tiles = Tiles::of(cache, head_dim).unwrap();
        let wide_tile = 16 * tiles.wide_row_warps;
        let planner = Planner { group: shape.group(), kv_heads, wide_tile, blocks: [blocks; 2], partial_rows };
        let mut next = 0;
        let sequences: Vec<PlanSequence> = (self.case.sequences.iter().zip(&self.starts))
            .map(|(&(first_position, rows), &table_start)| PlanSequence { first_position, rows, table_start })
            .inspect(|one| next += one.rows as usize)
            .collect();
        let bucket = (rows.max(next), sequences.len() + 1);
        let mut words = vec![u32::MAX; planner.words_max(bucket.0, bucket.1)];
        planner.plan(sequences.into_iter(), self.case.window, bucket, &mut PlanScratch::default(), &mut words);
        let (query, held) = match cache {
            KvDtype::Bf16 => {
                let rounded: Vec<u16> = self.queries().flatten().map(|&query| f32_to_bf16(query)).collect();
                (machine.holding(&rounded), machine.holding(&self.half))
            }
            _ => (machine.holding(&self.qkv), machine.holding(&self.eight)),
        };
        let (plan, tables) = (machine.holding(&words), machine.holding(&self.tables));
        let partials = (partial_rows * kv_heads) as usize;
        let memory = |bytes: usize| machine.memory(bytes.max(16));
        let [values, folds, output]: [Memory; 3] =
            [partials * head_dim as usize * 4, partials * 8, bucket.0 * self.width() * 4].map(memory);
        let arrivals = machine.holding(&vec![0u32; partials.max(4)]);
        let layer = AttentionLayer {
            query: query.ptr(),
            cache: CacheLayer { cache: held.ptr(), layer: LAYER, layers: LAYERS },
            plan: plan.ptr(),
            block_tables: tables.ptr(),
            output: output.ptr(),
            form: OutputForm::F32,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: self.case.window,
            soft_cap: self.case.soft_cap,
        };
        let scratch = AttentionScratch { values: values.ptr(), folds: folds.ptr(), arrivals: arrivals.ptr() };
        let cap = if self.case.soft_cap.is_some() { "_cap" } else { "" };
        for wide in if rows > NARROW_ROWS_MAX { vec![true, false] } else { vec![false] } {
            let block = Block::portable(&tiles, wide);
            let call = Call {
                module: block.module,
                name: Block::name(&tiles, wide, cap).leak(),
                grid: [blocks.min(7), 1, 1],
                block: block.threads,
                shared: block.shared_bytes,
                params: AttentionParams::new(shape, &layer, &scratch, wide),
            };
            machine.run(&call).unwrap();
        }
        assert!(
            arrivals.read::<u32>(partials).iter().all(|&count| count == 0),
            "{}: arrivals are left",
            self.case.name
        );
        output.read(next * self.width())
    }

    /// By f64: each value, and Σ p·|v| beside it.
    fn expected(&self) -> Vec<(f64, f64)> {
        let (query_heads, kv_heads, dim) = self.case.shape;
        let (width, scale) = (dim as usize, 1.0 / f64::from(dim).sqrt());
        let places: Vec<(usize, u32)> = (self.case.sequences.iter().enumerate())
            .flat_map(|(index, &(first, rows))| (first..first + rows).map(move |position| (index, position)))
            .collect();
        let mut output = Vec::new();
        for (query, (index, position)) in self.queries().zip(places) {
            let begin = self.case.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let kept = |part: u32, head: u32, at: u32| {
                let block = self.tables[self.starts[index] as usize + at as usize / BLOCK_TOKENS];
                let number = (((block * LAYERS + LAYER) * 2 + part) * kv_heads + head) as usize;
                let from = (number * BLOCK_TOKENS + at as usize % BLOCK_TOKENS) * width;
                self.half[from..from + width].iter().map(|&bits| f64::from(bf16_to_f32(bits)))
            };
            for (head, query) in (0..query_heads).zip(query.chunks(width)) {
                let kv_head = head / (query_heads / kv_heads);
                let rounded = || query.iter().map(|&q| f64::from(bf16_to_f32(f32_to_bf16(q))));
                let scores: Vec<f64> = (begin..=position)
                    .map(|at| kept(0, kv_head, at).zip(rounded()).map(|(k, q)| k * q).sum::<f64>() * scale)
                    .map(|score| {
                        self.case.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                let mut values = vec![(0.0, 0.0); width];
                for (at, score) in (begin..=position).zip(scores) {
                    let p = (score - highest).exp() / total;
                    for (sum, value) in values.iter_mut().zip(kept(1, kv_head, at)) {
                        *sum = (sum.0 + p * value, sum.1 + p * value.abs());
                    }
                }
                output.extend(values);
            }
        }
        output
    }
}

fn cases() -> Vec<Case> {
    let case = |name, shape, sequences| Case { name, shape, window: None, soft_cap: None, spread: 3.0, sequences };
    vec![
        case("group 2 of 64", (2, 1, 64), vec![(0, 1), (250, 9), (515, 1)]),
        case("group 1 of 80", (1, 1, 80), vec![(0, 5), (64, 1)]),
        case("group 3 of 96", (3, 1, 96), vec![(60, 3), (31, 1)]),
        case("group 2 of 128", (4, 2, 128), vec![(255, 2), (3, 1)]),
        case("group 2 of 256", (2, 1, 256), vec![(33, 2)]),
        case("more than a tile of 64", (3, 1, 64), vec![(0, 50)]),
        case("a wide tile of 80", (11, 1, 80), vec![(62, 3)]),
        case("a wide tile of 128", (17, 1, 128), vec![(63, 2)]),
        case("a wide tile of 256", (11, 1, 256), vec![(30, 3)]),
        Case { window: Some(70), ..case("window", (2, 1, 64), vec![(0, 3), (300, 4)]) },
        Case { soft_cap: Some(5.0), ..case("soft cap", (2, 1, 128), vec![(90, 2)]) },
    ]
}

/// Differences of bits, the first of them.
fn compare(what: &str, one: &[f32], other: &[f32], found: &mut Vec<String>) {
    let differing: Vec<usize> = (0..one.len().max(other.len()))
        .filter(|&i| one.get(i).map(|v| v.to_bits()) != other.get(i).map(|v| v.to_bits()))
        .collect();
    if let Some(&first) = differing.first() {
        let pair = (one.get(first), other.get(first));
        found.push(format!("  {what}: {} of {} differ, first {first}: {pair:?}", differing.len(), one.len()));
    }
}

#[test]
fn attention_over_e4m3_is_that_over_the_same_values_in_bf16() {
    let mut random = Random::fresh("attention over e4m3");
    for machine in Machine::all_for(Emulated::Attention) {
        let mut found = Vec::new();
        for case in cases() {
            let name = format!("{}, {}", case.name, machine.name());
            let problem = Problem::new(case, &mut random);
            let plain = problem.run(&machine, KvDtype::Bf16, Cut(1, 3, 0));
            let expected = problem.expected();
            assert_eq!(plain.len(), expected.len());
            // As the tests of bf16 bound it, which say why.
            let far = |(got, &(value, magnitude)): (&f32, &(f64, f64))| {
                (f64::from(*got) - value)
                    .abs()
                    .partial_cmp(&(0.0045 * magnitude + 1e-6))
                    .is_none_or(|order| order.is_gt())
            };
            let wrong = plain.iter().zip(&expected).filter(|both| far(*both)).count();
            if wrong > 0 {
                found.push(format!("  {name}: {wrong} of {} values of bf16 are far from f64", plain.len()));
            }
            for cut in [Cut(1, 3, 0), Cut(1, 1 << 20, 64), Cut(65, 3, 0), Cut(65, 1 << 20, 256)] {
                let own = problem.run(&machine, KvDtype::Fp8, cut);
                compare(&format!("{name}, {cut:?}"), &plain, &own, &mut found);
            }
            compare(
                &format!("{name}, wide, bf16"),
                &plain,
                &problem.run(&machine, KvDtype::Bf16, Cut(65, 3, 0)),
                &mut found,
            );
            println!("{name}: {} differences so far", found.len());
        }
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

//! Append and attention launched one after the other, as a step does: the attention begins early, and must not read what the
//! append has not written yet.

use polylink_protocol::exact_math::{f32_to_bf16, rope_frequencies, rope_turn};

use super::super::*;
use super::bench_case::{POISON, Random};
use crate::cuda::driver::Device;
use crate::cuda::inputs::Counts;

const LAYERS: u32 = 2;
const LAYER: u32 = 1;
const RUNS: usize = 12;

/// Runs a step several times with nothing between its launches, and once with each waited for; says what differs.
fn check(
    device: &std::sync::Arc<Device>,
    shape: AttentionShape,
    sequences: &[(u32, u32)],
    random: &mut Random,
    found: &mut Vec<String>,
) {
    let AttentionShape { query_heads, kv_heads, head_dim } = shape;
    let kernels = AttentionKernels::new(device, shape, KvDtype::Bf16, 1 << 14).unwrap();
    let (mut tables, mut starts, mut positions, mut sequence_of) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let total: u32 = sequences.iter().map(|(first, rows)| (first + rows).div_ceil(32)).sum();
    let mut blocks: Vec<u32> = (0..total).collect();
    random.shuffle(&mut blocks);
    let stretch = (32 * head_dim) as usize;
    let mut cache = vec![POISON; (total * LAYERS * 2 * kv_heads) as usize * stretch];
    for (index, &(first, rows)) in sequences.iter().enumerate() {
        starts.push(tables.len() as u32);
        for entry in 0..(first + rows).div_ceil(32) {
            let block = blocks.pop().unwrap();
            tables.push(block);
            for part_head in 0..2 * kv_heads {
                let at = ((block * LAYERS + LAYER) * 2 * kv_heads + part_head) as usize * stretch;
                let old = (first.saturating_sub(entry * 32)).min(32) * head_dim;
                cache[at..at + old as usize].fill_with(|| f32_to_bf16(random.value()));
            }
        }
        positions.extend(first..first + rows);
        sequence_of.extend((0..rows).map(|_| index as u32));
    }
    let rows = positions.len();
    let width = (query_heads + 2 * kv_heads) * head_dim;
    let qkv: Vec<f32> = (0..rows as u32 * width).map(|_| random.value() * 3.0).collect();
    let frequencies = rope_frequencies(10_000.0, head_dim as usize);
    let longest = positions.iter().max().unwrap() + 1;
    let (sine, cosine): (Vec<f32>, Vec<f32>) =
        (0..longest).flat_map(|p| frequencies.iter().map(move |&f| rope_turn(p, f))).unzip();
    let bucket = (rows, sequences.len());
    let mut words = vec![0; kernels.planner().words_max(bucket.0, bucket.1)];
    let planned = sequences.iter().zip(&starts).map(|(&(first_position, rows), &table_start)| PlanSequence {
        first_position,
        rows,
        table_start,
    });
    kernels.planner().plan(planned, None, bucket, &mut PlanScratch::default(), &mut words);

    let put = |values: &[f32]| device.from_slice(values).unwrap();
    let put_words = |values: &[u32]| device.from_slice(values).unwrap();
    let [qkv, sine, cosine] = [&qkv, &sine, &cosine].map(|values| put(values));
    let zeros = vec![0; sequences.len()];
    let [plan, tables, starts, positions, sequence_of, flags] =
        [&words, &tables, &starts, &positions, &sequence_of, &zeros].map(|values| put_words(values));
    let counts = Counts { rows: rows as u32, sequences: sequences.len() as u32, ..Counts::default() };
    let counts = device.from_slice(&[counts]).unwrap();
    let on_device = device.alloc(cache.len() * 2).unwrap();
    let query = device.alloc(rows * (query_heads * head_dim * 2) as usize).unwrap();
    let count = rows * (query_heads * head_dim) as usize;
    let output = device.alloc(4 * count).unwrap();
    let sizes = [kernels.partial_value_bytes(), kernels.partial_fold_bytes(), kernels.arrival_bytes()];
    let scratch = sizes.map(|bytes| device.alloc(bytes).unwrap());
    scratch[2].fill(0).unwrap();
    let inputs = RowInputs {
        counts: counts.ptr(),
        positions: positions.ptr(),
        sequence_of: sequence_of.ptr(),
        table_start: starts.ptr(),
        flags: flags.ptr(),
        block_tables: tables.ptr(),
    };
    let layer = CacheLayer { cache: on_device.ptr(), layer: LAYER, layers: LAYERS };
    let rope = RopeTables { pairs: head_dim / 2, sine: sine.ptr(), cosine: cosine.ptr(), long: None };
    let attention = AttentionLayer {
        query: query.ptr(),
        cache: layer,
        plan: plan.ptr(),
        block_tables: tables.ptr(),
        output: output.ptr(),
        form: OutputForm::F32,
        scale: 0.1,
        window: None,
        soft_cap: None,
    };
    let buffers = AttentionScratch { values: scratch[0].ptr(), folds: scratch[1].ptr(), arrivals: scratch[2].ptr() };
    let mut launches = vec![kernels.append(&inputs, &layer, &rope, None, [qkv.ptr(), query.ptr()], bucket.0)];
    launches.extend(kernels.attention(&attention, &buffers, bucket.0, bucket.1));
    let run = |wait: bool| -> Vec<f32> {
        on_device.write(0, &cache).unwrap();
        for buffer in [&query, &output] {
            buffer.fill(0xff).unwrap();
        }
        for launch in &launches {
            launch.run(device).unwrap();
            if wait {
                device.synchronize().unwrap();
            }
        }
        output.read(0, count).unwrap()
    };
    let expected = run(true);
    let undefined = expected.iter().filter(|value| !value.is_finite()).count();
    if undefined > 0 {
        found.push(format!(
            "  {shape:?}, {sequences:?}: {undefined} values are not finite though each launch was waited for"
        ));
    }
    for number in 0..RUNS {
        let got = run(false);
        let bad: Vec<usize> = (0..count).filter(|&i| got[i].to_bits() != expected[i].to_bits()).collect();
        if let Some(&first) = bad.first() {
            let per_row = (query_heads * head_dim) as usize;
            found.push(format!(
                "  {shape:?}, {sequences:?}, run {number}: {} values differ, first in row {} at {}: {} and {}",
                bad.len(),
                first / per_row,
                first % per_row,
                got[first],
                expected[first]
            ));
        }
    }
}

#[test]
fn attention_that_begins_early_reads_what_the_append_writes() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("append and attention");
    let mut found = Vec::new();
    let decodes = [(100, 1), (255, 1), (256, 1), (1000, 1), (4000, 1), (0, 1), (31, 1), (512, 1)];
    let mixed = [(300, 5), (90, 70), (1023, 1), (0, 200), (700, 33)];
    for (query_heads, kv_heads, head_dim) in [(32, 8, 128), (14, 2, 64), (8, 1, 256)] {
        let shape = AttentionShape { query_heads, kv_heads, head_dim };
        for sequences in [&decodes[..], &decodes[3..4], &mixed[..]] {
            check(&device, shape, sequences, &mut random, &mut found);
        }
    }
    assert!(found.is_empty(), "what was read was not written yet:\n{}", found.join("\n"));
}

//! Times, printed where `POLYLINK_GPU_TIMES` is 1. Nothing is asserted of them.

use std::sync::{Arc, OnceLock};

use polylink_protocol::exact_math::f32_to_bf16;

use super::super::*;
use super::bench_case::Random;
use crate::cuda::driver::{Device, DeviceBuffer};
use crate::cuda::inputs::Counts;

const SHAPE: AttentionShape = AttentionShape { query_heads: 32, kv_heads: 8, head_dim: 128 };

struct Memory {
    cache: DeviceBuffer,
    query: DeviceBuffer,
    output: DeviceBuffer,
    scratch: [DeviceBuffer; 3],
}

/// Fills a buffer with small random bf16, one stretch of which is repeated.
fn fill(buffer: &DeviceBuffer, random: &mut Random) {
    const STRETCH: usize = 1 << 24;
    static VALUES: OnceLock<Vec<u16>> = OnceLock::new();
    let values = VALUES.get_or_init(|| (0..STRETCH).map(|_| f32_to_bf16(random.value())).collect());
    for at in (0..buffer.bytes() / 2).step_by(STRETCH) {
        buffer.write(2 * at, &values[..STRETCH.min(buffer.bytes() / 2 - at)]).unwrap();
    }
}

/// Seconds of one layer's attention over `sequences` of (first position, rows), by a graph over several layers.
fn time(device: &Arc<Device>, name: &str, sequences: &[(u32, u32)], portable: bool, random: &mut Random) {
    let mut kernels = AttentionKernels::new(device, SHAPE, KvDtype::Bf16, 1 << 14).unwrap();
    if portable {
        kernels = kernels.portable(device).unwrap();
    }
    let rows: usize = sequences.iter().map(|s| s.1 as usize).sum();
    let blocks: Vec<u32> = sequences.iter().map(|(first, rows)| (first + rows).div_ceil(32)).collect();
    let total = blocks.iter().sum::<u32>();
    let layer_bytes = total as usize * 2 * 8 * 32 * 128 * 2;
    // So many layers that the cache is several times what the device keeps of its memory near its processors.
    let layers = (400_000_000 / layer_bytes).clamp(1, 16) as u32;
    let mut tables: Vec<u32> = (0..total).collect();
    random.shuffle(&mut tables);
    let width = (SHAPE.query_heads * SHAPE.head_dim) as usize;
    let capacity = rows.next_multiple_of(256);
    let alloc = |bytes: usize| device.alloc(bytes).unwrap();
    let memory = Memory {
        cache: alloc(layer_bytes * layers as usize),
        query: alloc(rows * width * 2),
        output: alloc(capacity * width * 2),
        scratch: [
            alloc(kernels.partial_value_bytes()),
            alloc(kernels.partial_fold_bytes()),
            alloc(kernels.arrival_bytes()),
        ],
    };
    fill(&memory.cache, random);
    fill(&memory.query, random);
    memory.scratch[2].fill(0).unwrap();
    let planner = kernels.planner();
    let bucket = (rows, sequences.len());
    let mut words = vec![0; planner.words_max(bucket.0, bucket.1)];
    let mut start = 0;
    let planned: Vec<PlanSequence> = sequences
        .iter()
        .zip(&blocks)
        .map(|(&(first_position, rows), blocks)| {
            let table_start = start;
            start += blocks;
            PlanSequence { first_position, rows, table_start }
        })
        .collect();
    let mut scratch = PlanScratch::with_limits(planner, bucket.0, bucket.1);
    let began = std::time::Instant::now();
    planner.plan(planned.iter().copied(), None, bucket, &mut scratch, &mut words);
    let planning = began.elapsed().as_secs_f64();
    let (plan, block_tables) = (device.from_slice(&words).unwrap(), device.from_slice(&tables).unwrap());
    let scratch = AttentionScratch {
        values: memory.scratch[0].ptr(),
        folds: memory.scratch[1].ptr(),
        arrivals: memory.scratch[2].ptr(),
    };
    let launches: Vec<Launch> = (0..layers)
        .flat_map(|layer| {
            let layer = AttentionLayer {
                query: memory.query.ptr(),
                cache: CacheLayer { cache: memory.cache.ptr(), layer, layers },
                plan: plan.ptr(),
                block_tables: block_tables.ptr(),
                output: memory.output.ptr(),
                form: OutputForm::Bf16Tiled { row_capacity: capacity as u32 },
                scale: 0.088_388_35,
                window: None,
                soft_cap: None,
            };
            kernels.attention(&layer, &scratch, bucket.0, bucket.1)
        })
        .collect();
    let graph = device.capture(|| launches.iter().try_for_each(|launch| launch.run(device))).unwrap();
    for _ in 0..2 {
        graph.launch().unwrap();
    }
    let seconds = device.time(9, || graph.launch()).unwrap() / f64::from(layers);
    let keys: f64 = sequences.iter().map(|&(first, rows)| f64::from(first + rows)).sum();
    let seen: f64 =
        sequences.iter().map(|&(first, rows)| f64::from(rows) * (f64::from(first) + f64::from(rows + 1) / 2.0)).sum();
    let bytes = keys * 2.0 * f64::from(SHAPE.kv_heads * SHAPE.head_dim) * 2.0;
    let operations = seen * 4.0 * f64::from(SHAPE.query_heads * SHAPE.head_dim);
    println!(
        "attention {name:28} {} {:9.2} us a layer, {:7.0} GB/s of KV, {:6.1} TFLOP/s; {} + {} pieces, planned in {:.0} us",
        if portable { "of all devices" } else { "" },
        seconds * 1e6,
        bytes / seconds / 1e9,
        operations / seconds / 1e12,
        words[0],
        words[1],
        planning * 1e6
    );
}

#[test]
fn times() {
    let Some(device) = Device::for_tests() else { return };
    if std::env::var("POLYLINK_GPU_TIMES").as_deref() != Ok("1") {
        return;
    }
    let mut random = Random::fresh("attention times");
    println!("device: {}", device.name());
    for (name, count, context) in [
        ("decode 1 x 128", 1, 128),
        ("decode 1 x 1k", 1, 1024),
        ("decode 1 x 8k", 1, 8192),
        ("decode 1 x 32k", 1, 32_768),
        ("decode 8 x 2k", 8, 2048),
        ("decode 64 x 1k", 64, 1024),
        ("decode 256 x 1k", 256, 1024),
        ("decode 300 x 1k", 300, 1024),
    ] {
        time(&device, name, &vec![(context - 1, 1); count], false, &mut random);
    }
    for (name, first, rows) in [
        ("prefill 8k", 0, 8192),
        ("prefill 2k", 0, 2048),
        ("prefill 512", 0, 512),
        ("chunk of 256 at 8k", 8192, 256),
        ("chunk of 512 at 8k", 8192, 512),
        ("chunk of 2k at 30k", 30_720, 2048),
    ] {
        time(&device, name, &[(first, rows)], false, &mut random);
    }
    let mut mixed = vec![(1023, 1); 64];
    mixed.push((2048, 512));
    time(&device, "64 x 1k, chunk of 512 at 2k", &mixed, false, &mut random);
    time(&device, "decode 64 x 1k", &[(1023, 1); 64], true, &mut random);
    time(&device, "prefill 8k", &[(0, 8192)], true, &mut random);
    for rows in [1u32, 64, 8192] {
        time_append(&device, rows, &mut random);
    }
}

fn time_append(device: &Arc<Device>, rows: u32, random: &mut Random) {
    let kernels = AttentionKernels::new(device, SHAPE, KvDtype::Bf16, 64).unwrap();
    let width = (SHAPE.query_heads + 2 * SHAPE.kv_heads) * SHAPE.head_dim;
    let buffer = |bytes: u32| {
        let buffer = device.alloc(bytes as usize).unwrap();
        fill(&buffer, random);
        buffer
    };
    let mut buffer = buffer;
    let (qkv, query) = (buffer(rows * width * 4), buffer(rows * SHAPE.query_heads * SHAPE.head_dim * 2));
    let cache = buffer(rows.div_ceil(32) * 2 * 8 * 32 * 128 * 2);
    let table = buffer(rows * 64 * 4);
    let words = |values: Vec<u32>| device.from_slice(&values).unwrap();
    let (positions, zeros, tables) =
        (words((0..rows).collect()), words(vec![0; rows as usize]), words((0..rows.div_ceil(32)).collect()));
    let counts = device.from_slice(&[Counts { rows, sequences: 1, ..Counts::default() }]).unwrap();
    let inputs = RowInputs {
        counts: counts.ptr(),
        positions: positions.ptr(),
        sequence_of: zeros.ptr(),
        table_start: zeros.ptr(),
        flags: zeros.ptr(),
        block_tables: tables.ptr(),
    };
    let rope = RopeTables { pairs: 64, sine: table.ptr(), cosine: table.ptr(), long: None };
    let layer = CacheLayer { cache: cache.ptr(), layer: 0, layers: 1 };
    let launch = kernels.append(&inputs, &layer, &rope, None, [qkv.ptr(), query.ptr()], rows as usize);
    let graph = device.capture(|| (0..10).try_for_each(|_| launch.run(device))).unwrap();
    graph.launch().unwrap();
    let seconds = device.time(9, || graph.launch()).unwrap() / 10.0;
    println!("append of {rows} rows: {:.2} us", seconds * 1e6);
}

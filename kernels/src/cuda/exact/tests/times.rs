//! Times of the shapes of an 8B Llama, if asked for.

use super::*;
use crate::backend::KvDtype;
use crate::cuda::exact::attention::{AttentionIo, ExactAttention, PlannedSequence};
use crate::cuda::exact::packing::Form;
use crate::cuda::exact::products::{Section, TILES};
use crate::program::AttentionSpec;
use crate::weights::MatrixShape;

/// Random bytes on the device, from a stretch that is repeated.
fn filled(device: &Arc<Device>, random: &mut Random, bytes: usize, floats: bool) -> DeviceBuffer {
    let buffer = device.alloc(bytes).unwrap();
    let stretch: Vec<u64> = (0..(1 << 17))
        .map(|_| match floats {
            true => u64::from(random.normal().to_bits()) << 32 | u64::from(random.normal().to_bits()),
            false => random.next() & 0x3bff_3bff_3bff_3bff,
        })
        .collect();
    let stretch: Vec<u8> = stretch.iter().flat_map(|word| word.to_le_bytes()).collect();
    for at in (0..bytes).step_by(stretch.len()) {
        buffer.write(at, &stretch[..stretch.len().min(bytes - at)]).unwrap();
    }
    buffer
}

#[test]
fn times_of_products() {
    if std::env::var_os("POLYLINK_GPU_TIMES").is_none() {
        println!("skipped: POLYLINK_GPU_TIMES is not set");
        return;
    }
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::new("times");
    let kernels = ExactProducts::new(&device).unwrap();
    let shapes =
        [("qkv", 6144, 4096, 4096), ("o", 4096, 4096, 512), ("gate_up", 28672, 4096, 4096), ("down", 4096, 14336, 896)];
    let most = 8192;
    let input = filled(&device, &mut random, most * 14336 * 4, true);
    let quants = filled(&device, &mut random, most * 14336, false);
    let scales = filled(&device, &mut random, most * 14336 / 8, true);
    let out = device.alloc(most * 28672 * 4).unwrap();
    println!("{} multiprocessors, {}", device.multiprocessors(), device.name());
    for form in [Form::Q8_0, Form::Q4_0, Form::Q4K, Form::Q6K, Form::Bf16, Form::F32] {
        for (name, outputs, inputs, range_length) in shapes {
            let shape = MatrixShape { outputs, inputs, range_length, planes: 1 };
            let bytes = form.bytes(outputs, inputs);
            // Enough matrices that none is found in the cache.
            let sets = (200_000_000 / bytes).clamp(2, 16);
            let matrices: Vec<ExactMatrix> = (0..sets)
                .map(|_| {
                    let weights = filled(&device, &mut random, bytes, !form.takes_integers());
                    let section = Section { form, first: 0, outputs, matrix_bytes: bytes, weights: weights.ptr() };
                    ExactMatrix { shape, sections: vec![section], buffers: vec![weights] }
                })
                .collect();
            for rows in [1u32, 8, 16, 64, 256, 2048, 8192] {
                if !form.takes_integers() && rows > 2048 || form != Form::Q8_0 && form != Form::Q4K && rows == 256 {
                    continue;
                }
                let counts = device.from_slice(&count(rows as usize, 0, 0)).unwrap();
                let product = Product {
                    input: input.ptr(),
                    quants: quants.ptr(),
                    scales: scales.ptr(),
                    output: out.ptr(),
                    counts: counts.ptr(),
                    rows,
                    groups: 1,
                    ..Product::default()
                };
                let mut ways: Vec<(&str, Vec<_>)> = vec![(
                    "chosen",
                    matrices.iter().map(|matrix| kernels.launches(matrix, &product).remove(0)).collect(),
                )];
                if form.takes_integers() {
                    for tile in TILES.into_iter().filter(|tile| tile.takes(&shape)) {
                        let fits = tile.rows >= rows.min(64) && tile.rows <= rows.next_multiple_of(8).max(8) * 2;
                        if fits {
                            let launch =
                                |matrix: &ExactMatrix| kernels.integers(&shape, &matrix.sections[0], &product, tile);
                            ways.push((tile.name, matrices.iter().map(launch).collect()));
                        }
                    }
                }
                for (way, launches) in ways {
                    let runs = if rows >= 2048 { 3 } else { 7 };
                    let seconds =
                        device.time(runs, || launches.iter().try_for_each(|launch| launch.run(&device))).unwrap()
                            / launches.len() as f64;
                    let operations = 2.0 * f64::from(rows) * (outputs * inputs) as f64;
                    println!(
                        "{form:?} {name} rows {rows} {way}: {:.1} µs, {:.0} GB/s of weights, {:.1} TOP/s",
                        seconds * 1e6,
                        bytes as f64 / seconds * 1e-9,
                        operations / seconds * 1e-12
                    );
                }
            }
        }
    }
}

#[test]
fn times_of_attention() {
    if std::env::var_os("POLYLINK_GPU_TIMES").is_none() {
        println!("skipped: POLYLINK_GPU_TIMES is not set");
        return;
    }
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::new("times of attention");
    let spec =
        AttentionSpec { query_heads: 32, kv_heads: 8, head_dim: 128, scale: 0.088_388, window: None, soft_cap: None };
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8] {
        let kernels = ExactAttention::new(&device, dtype, 128).unwrap();
        let position = match dtype {
            KvDtype::F32 => 4 * 128,
            KvDtype::Bf16 => 2 * 128,
            KvDtype::Int8 | KvDtype::Fp8 => 128 + 4,
        };
        // Sequences, first position, rows of each.
        for (sequences, first, rows) in [(1, 1023, 1), (8, 1023, 1), (64, 1023, 1), (1, 32767, 1), (1, 0, 2048)] {
            let blocks = sequences * (first + rows) / 32;
            let bytes = blocks * 2 * 8 * 32 * position;
            let cache = filled(&device, &mut random, bytes, true);
            let qkv = filled(&device, &mut random, sequences * rows * 48 * 128 * 4, true);
            let table: Vec<u32> = (0..blocks as u32).collect();
            let planned: Vec<PlannedSequence> = (0..sequences)
                .map(|s| PlannedSequence {
                    first_row: (s * rows) as u32,
                    rows: rows as u32,
                    first_position: first as u32,
                    table: (s * (blocks / sequences)) as u32,
                })
                .collect();
            let plan = AttentionPlan::new(&spec, device.multiprocessors());
            let (mut items, mut merges) = (Vec::new(), Vec::new());
            plan.fill(&planned, &mut items, &mut merges);
            let counts = device.from_slice(&count(sequences * rows, items.len(), merges.len())).unwrap();
            merges.push(AttentionMerge::default());
            let (items, merges) = (device.from_slice(&items).unwrap(), device.from_slice(&merges).unwrap());
            let partial = device.alloc(plan.partial_floats() * 4).unwrap();
            let out = device.alloc(sequences * rows * 32 * 128 * 4).unwrap();
            let tables = device.from_slice(&table).unwrap();
            let io = AttentionIo {
                qkv: qkv.ptr(),
                cache: cache.ptr(),
                items: items.ptr(),
                merges: merges.ptr(),
                block_tables: tables.ptr(),
                counts: counts.ptr(),
                partial: partial.ptr(),
                output: out.ptr(),
                quants: 0,
                scales: 0,
            };
            let launches = kernels.launches(&spec, &plan, &io, (0, 1), (sequences * rows, sequences));
            let one = |launches: &[Launch]| {
                let all = || (0..8).try_for_each(|_| launches.iter().try_for_each(|launch| launch.run(&device)));
                device.time(5, all).unwrap() / 8.0
            };
            let (both, first_only) = (one(&launches), one(&launches[..1]));
            let pairs: f64 = (0..rows).map(|row| (first + row + 1) as f64).sum::<f64>() * sequences as f64;
            println!(
                "{dtype:?} {sequences} × {rows} rows at {first}: {:.1} µs, {:.1} without the fold, {:.0} GB/s, {:.1} TFLOP/s",
                both * 1e6,
                first_only * 1e6,
                bytes as f64 / both * 1e-9,
                4.0 * pairs * 32.0 * 128.0 / both * 1e-12
            );
        }
    }
}

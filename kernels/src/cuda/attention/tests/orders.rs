//! Whether the two matrix instructions of sm_90 sum alike: the wide tiles there use the other one than the narrow tiles.

use polylink_protocol::exact_math::{bf16_to_f32, f32_to_bf16};

use super::bench_case::Random;
use crate::cuda::driver::{Device, DevicePtr, Launch};

/// Mirrors `OrdersParams` in `attention_orders_sm90a.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct OrdersParams {
    a: DevicePtr,
    b: DevicePtr,
    scores: [DevicePtr; 2],
    values: [DevicePtr; 2],
}

const ROWS: usize = 64;
const DEPTH: usize = 128;

/// Compares both results with f64 and with each other; says what is off.
fn compare(
    what: &str,
    got: [&[f32]; 2],
    width: usize,
    sum: impl Fn(usize, usize) -> (f64, f64),
    found: &mut Vec<String>,
) {
    for (own, instruction) in got.iter().zip(["wgmma", "mma.sync"]) {
        let error = |i: usize| {
            let (value, magnitude) = sum(i / width, i % width);
            let error = (f64::from(own[i]) - value).abs() / (magnitude * 1e-5 + 1e-30);
            if error.is_nan() { f64::INFINITY } else { error }
        };
        let bad: Vec<usize> = (0..own.len()).filter(|&i| error(i) > 1.0).collect();
        let worst = (0..own.len()).map(error).fold(0.0, f64::max);
        println!("{what}, {instruction}: worst {worst:.4} of what is allowed, {} of {} off", bad.len(), own.len());
        for &i in bad.iter().take(4) {
            let (row, column) = (i / width, i % width);
            found.push(format!(
                "  {what}, {instruction}: [{row}][{column}] is {} and should be {}; {} are off, columns {:?} of the first row",
                own[i],
                sum(row, column).0,
                bad.len(),
                bad.iter().filter(|&&j| j / width == row).map(|j| j % width).take(12).collect::<Vec<_>>()
            ));
        }
    }
    let unlike: Vec<usize> = (0..got[0].len()).filter(|&i| got[0][i].to_bits() != got[1][i].to_bits()).collect();
    println!("{what}: {} of {} bits differ", unlike.len(), got[0].len());
    for &i in unlike.iter().take(3) {
        let (a, b) = (got[0][i], got[1][i]);
        let apart = i64::from(a.to_bits()) - i64::from(b.to_bits());
        found.push(format!(
            "  {what}: {} of {} differ; [{}][{}]: wgmma {a:e}, mma.sync {b:e}, {apart} units apart, exact {:e}",
            unlike.len(),
            got[0].len(),
            i / width,
            i % width,
            sum(i / width, i % width).0
        ));
    }
}

#[test]
fn both_matrix_instructions_sum_alike() {
    let Some(device) = Device::for_tests() else { return };
    if !device.hopper() {
        println!("skipped: the device has no wgmma");
        return;
    }
    let function = device.function("attention_orders_sm90a", "attention_orders").unwrap();
    let mut random = Random::fresh("orders");
    let mut found = Vec::new();
    for (name, spread, weights) in [("even", 0, false), ("of many magnitudes", 24, false), ("weights", 6, true)] {
        let mut value = |weight: bool| {
            let scale = 2f32.powi(-(random.below(spread + 1) as i32));
            let value = random.value() * scale;
            f32_to_bf16(if weight { if random.below(4) == 0 { 0.0 } else { value.abs() } } else { value })
        };
        let a: Vec<u16> = (0..ROWS * DEPTH).map(|_| value(weights)).collect();
        let b: Vec<u16> = (0..ROWS * DEPTH).map(|_| value(false)).collect();
        let (on_a, on_b) = (device.from_slice(&a).unwrap(), device.from_slice(&b).unwrap());
        let output = [ROWS * 64, ROWS * 64, ROWS * 128, ROWS * 128].map(|count| {
            let buffer = device.alloc(4 * count).unwrap();
            buffer.fill(0xff).unwrap();
            buffer
        });
        let params = OrdersParams {
            a: on_a.ptr(),
            b: on_b.ptr(),
            scores: [output[0].ptr(), output[1].ptr()],
            values: [output[2].ptr(), output[3].ptr()],
        };
        Launch::new(&function, [1, 1, 1], 128, 2 * 64 * 256 + 1024, params).run(&device).unwrap();
        let read = output.each_ref().map(|buffer| buffer.read::<f32>(0, buffer.bytes() / 4).unwrap());
        let product = |a: u16, b: u16| f64::from(bf16_to_f32(a)) * f64::from(bf16_to_f32(b));
        let total = |terms: &mut dyn Iterator<Item = f64>| terms.fold((0.0, 0.0), |s, x| (s.0 + x, s.1 + x.abs()));
        let score =
            |row: usize, key: usize| total(&mut (0..DEPTH).map(|k| product(a[row * DEPTH + k], b[key * DEPTH + k])));
        let turned =
            |row: usize, dim: usize| total(&mut (0..64).map(|key| product(a[row * DEPTH + key], b[key * DEPTH + dim])));
        compare(&format!("{name}, scores"), [&read[0], &read[1]], 64, score, &mut found);
        compare(&format!("{name}, values"), [&read[2], &read[3]], 128, turned, &mut found);
    }
    assert!(found.is_empty(), "the instructions differ:\n{}", found.join("\n"));
}

//! Against attention in f64 over the same rounded inputs.

use super::bench_case::{Bench, Case, Cut, Random};
use crate::cuda::driver::Device;

/// The rounding of p to bf16 moves a value by at most 2⁻⁹ of Σ p·|v|, and the sum of p by as much of itself.
const OF_MAGNITUDE: f64 = 0.0045;
/// Those errors are of both signs: over a row they are less than this part of the row's length.
const OF_ROW: f64 = 0.004;

fn ragged() -> Vec<(u32, u32)> {
    vec![(0, 1), (4999, 1), (255, 1), (256, 1), (63, 2), (0, 17), (511, 3), (700, 61), (31, 33), (1024, 5), (2, 1)]
}

/// Cases by name.
pub fn cases() -> Vec<Case> {
    let case = |name, shape, spread, sequences: Vec<(u32, u32)>| Case {
        name,
        shape,
        window: None,
        soft_cap: None,
        spread,
        sequences,
    };
    vec![
        case("one row, one key", (4, 1, 128), 3.0, vec![(0, 1)]),
        case("one split", (4, 1, 128), 3.0, vec![(200, 1)]),
        case("group 4 of 128", (8, 2, 128), 4.0, ragged()),
        case("group 1 of 64", (3, 3, 64), 3.0, ragged()),
        case("group 2 of 80", (4, 2, 80), 3.0, ragged()),
        case("group 3 of 96", (6, 2, 96), 3.0, ragged()),
        case("group 7 of 64", (14, 2, 64), 6.0, ragged()),
        case("group 8 of 256", (8, 1, 256), 4.0, ragged()),
        case("group 16 of 128", (16, 1, 128), 30.0, ragged()),
        case("long prompt", (8, 2, 128), 4.0, vec![(0, 700), (5, 1), (1900, 129), (300, 300)]),
        case("long prompt, group 3 of 80", (3, 1, 80), 4.0, vec![(0, 500), (77, 1), (1000, 44)]),
        case("long prompt of 256", (4, 1, 256), 4.0, vec![(0, 333), (290, 70)]),
        Case { window: Some(100), ..case("window", (8, 2, 128), 3.0, ragged()) },
        Case { window: Some(1), ..case("window of 1", (4, 2, 64), 3.0, vec![(0, 3), (256, 1), (300, 9)]) },
        Case {
            window: Some(513),
            ..case("window, long prompt", (4, 1, 64), 3.0, vec![(0, 800), (3000, 1), (2500, 90)])
        },
        Case { soft_cap: Some(5.0), ..case("soft cap", (8, 2, 128), 12.0, ragged()) },
        Case { soft_cap: Some(50.0), ..case("soft cap of 256", (4, 2, 256), 30.0, vec![(0, 300), (900, 1), (40, 3)]) },
        Case {
            soft_cap: Some(30.0),
            window: Some(300),
            ..case("soft cap and window of 64", (2, 2, 64), 30.0, vec![(0, 270), (1100, 1)])
        },
    ]
}

/// Rows of a case that are compared: all of short ones, some of long ones.
fn sampled(bench: &Bench, random: &mut Random) -> Vec<(usize, u32)> {
    let mut rows = Vec::new();
    for (index, &(_, count)) in bench.case.sequences.iter().enumerate() {
        let step = count.div_ceil(40);
        rows.extend((0..count).step_by(step as usize).map(|row| (index, (row + random.below(step)).min(count - 1))));
        rows.push((index, count - 1));
    }
    rows
}

/// What differs, one line per bad head of a row, at most so many.
fn compare(bench: &Bench, kernel: &str, output: &[f32], tiled: bool, rows: &[(usize, u32)], found: &mut Vec<String>) {
    let (width, dim) = (bench.width(), bench.case.shape.2 as usize);
    let starts: Vec<usize> = bench
        .case
        .sequences
        .iter()
        .scan(0, |next, (_, rows)| Some(std::mem::replace(next, *next + *rows as usize)))
        .collect();
    let (mut worst, mut bad_heads, mut worst_row) = (0f64, 0, 0f64);
    for &(sequence, row) in rows {
        let expected = bench.expected(sequence, row);
        let got = &output[(starts[sequence] + row as usize) * width..][..width];
        for (head, (got, expected)) in got.chunks(dim).zip(expected.chunks(dim)).enumerate() {
            let allowed = |&(value, magnitude): &(f64, f64)| {
                OF_MAGNITUDE * magnitude + 1e-6 + if tiled { value.abs() / 256.0 } else { 0.0 }
            };
            let ratio = |(g, e): (&f32, &(f64, f64))| {
                let error = (f64::from(*g) - e.0).abs() / allowed(e);
                if error.is_nan() { f64::INFINITY } else { error }
            };
            let ratios: Vec<f64> = got.iter().zip(expected).map(ratio).collect();
            let over = ratios.iter().filter(|&&r| r > 1.0).count();
            let most = ratios.iter().copied().fold(0.0, f64::max);
            let length = expected.iter().map(|e| e.0 * e.0).sum::<f64>().sqrt();
            let off = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e.0).powi(2)).sum::<f64>().sqrt() / length;
            worst = worst.max(most);
            worst_row = worst_row.max(if off.is_nan() { f64::INFINITY } else { off });
            if over > 0 || off.is_nan() || off > OF_ROW * if tiled { 1.5 } else { 1.0 } {
                bad_heads += 1;
                if bad_heads <= 6 {
                    let at = ratios.iter().position(|&r| r == most).unwrap_or(0);
                    let nans = got.iter().filter(|g| g.is_nan()).count();
                    let (first, rows) = bench.case.sequences[sequence];
                    found.push(format!(
                        "  {} ({kernel}): sequence {sequence} (first {first}, rows {rows}), row {row}, head {head}: {over} of {dim} off \
                         ({nans} NaN), row error {off:.4}; worst at dim {at}: got {} want {:.6} (x{most:.1}); got {:?} want {:?}",
                        bench.case.name,
                        got[at],
                        expected[at].0,
                        &got[..4],
                        expected[..4].iter().map(|e| e.0 as f32).collect::<Vec<_>>(),
                    ));
                }
            }
        }
    }
    println!(
        "{:30} {kernel:6} {:5}: worst value {worst:.3} of what is allowed, worst row {worst_row:.5}, {bad_heads} bad heads of {}",
        bench.case.name,
        if tiled { "tiled" } else { "f32" },
        rows.len() * bench.case.shape.0 as usize
    );
    if bad_heads > 0 {
        found.push(format!("  {} ({kernel}): {bad_heads} bad heads in all (tiled: {tiled})", bench.case.name));
    }
}

#[test]
fn values_are_those_of_f64() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("attention values");
    let mut found = Vec::new();
    for case in cases() {
        let bench = Bench::new(&device, &case, &mut random);
        let picks = bench.everything();
        let rows = sampled(&bench, &mut random);
        for tiled in [false, true] {
            let output = bench.run(&picks, &Cut { tiled, ..Cut::plain(1) });
            compare(&bench, "narrow", &output, tiled, &rows, &mut found);
        }
        let output = bench.run(&picks, &Cut::plain(257));
        compare(&bench, "wide", &output, false, &rows, &mut found);
    }
    assert!(found.is_empty(), "attention differs from f64:\n{}", found.join("\n"));
}

//! A row's bits do not depend on what is computed beside it, nor on how.

use std::io::Write;

use polylink_protocol::exact_math::{bf16_to_f32, f32_to_bf16};

use super::bench_case::{Bench, Cut, Pick, Random};
use super::values::cases;
use crate::cuda::driver::Device;

/// Says where two runs of the same rows differ.
fn compare(bench: &Bench, what: &str, all: &[f32], own: &[f32], picks: &[Pick], found: &mut Vec<String>) {
    let (width, dim) = (bench.width(), bench.case.shape.2 as usize);
    let starts: Vec<usize> = bench
        .case
        .sequences
        .iter()
        .scan(0, |next, (_, rows)| Some(std::mem::replace(next, *next + *rows as usize)))
        .collect();
    let mut at = 0;
    let (mut differing, mut first) = (0, None);
    for &(sequence, from, rows) in picks {
        for row in from..from + rows {
            let (one, other) = (&all[(starts[sequence] + row as usize) * width..][..width], &own[at..at + width]);
            for (column, (a, b)) in one.iter().zip(other).enumerate() {
                if a.to_bits() != b.to_bits() {
                    differing += 1;
                    first.get_or_insert((sequence, row, column / dim, column % dim, *a, *b));
                }
            }
            at += width;
        }
    }
    if let Some((sequence, row, head, dim, a, b)) = first {
        let (begin, rows) = bench.case.sequences[sequence];
        found.push(format!(
            "  {}, {what}: {differing} of {at} values differ; first: sequence {sequence} (first {begin}, rows {rows}), row {row}, \
             head {head}, dim {dim}: {a:e} ({:08x}) and {b:e} ({:08x})",
            bench.case.name,
            a.to_bits(),
            b.to_bits()
        ));
    }
}

#[test]
fn bits_do_not_depend_on_batch_chunks_tiles_or_splits() {
    let Some(device) = Device::for_tests() else { return };
    let mut random = Random::fresh("attention bits");
    let mut found = Vec::new();
    for case in cases() {
        let bench = Bench::new(&device, &case, &mut random);
        let everything = bench.everything();
        let all = bench.run(&everything, &Cut::plain(1));
        print!("{} ", case.name);
        let mut same = |what: &str, picks: &[Pick], cut: &Cut| {
            // A dot per run: should one never end, their number tells which.
            print!(".");
            std::io::stdout().flush().unwrap();
            let own = bench.run(picks, cut);
            compare(&bench, what, &all, &own, picks, &mut found);
        };
        let plain = Cut::plain(1);
        same("once more", &everything, &plain);
        same("wide tiles", &everything, &Cut::plain(257));
        same("tiles of all devices", &everything, &Cut { portable: true, ..plain });
        let split = Cut { portable: true, planner: Some((1 << 20, 1 << 14)), ..plain };
        same("tiles of all devices, a piece per split", &everything, &split);
        same("wide tiles of all devices", &everything, &Cut { portable: true, ..Cut::plain(257) });
        same("splits one after the other", &everything, &Cut { planner: Some((132, 0)), ..plain });
        same("wide tiles, one after the other", &everything, &Cut { planner: Some((132, 0)), ..Cut::plain(300) });
        same("a piece per split", &everything, &Cut { planner: Some((1 << 20, 1 << 14)), ..plain });
        same(
            "wide tiles, a piece per split",
            &everything,
            &Cut { planner: Some((1 << 20, 1 << 14)), ..Cut::plain(300) },
        );
        for blocks in [1, 3, 17] {
            same(&format!("{blocks} blocks"), &everything, &Cut { planner: Some((blocks, 1 << 14)), ..plain });
            let wide = Cut { planner: Some((blocks, 1 << 14)), ..Cut::plain(300) };
            same(&format!("{blocks} blocks, wide tiles"), &everything, &wide);
            let portable = Cut { portable: true, ..wide };
            same(&format!("{blocks} blocks, wide tiles of all devices"), &everything, &portable);
        }
        same("little room for partial rows", &everything, &Cut { planner: Some((1 << 20, 100)), ..plain });
        if case.window.is_some() {
            same("a plan without the window", &everything, &Cut { plan_window: false, ..plain });
            let split = Cut { plan_window: false, planner: Some((1 << 20, 1 << 14)), ..plain };
            same("a plan without the window, a piece per split", &everything, &split);
            same("the same by tiles of all devices", &everything, &Cut { portable: true, ..split });
        }
        let mut backwards = everything.clone();
        backwards.reverse();
        same("sequences backwards", &backwards, &plain);
        for (index, &(_, rows)) in case.sequences.iter().enumerate() {
            same(&format!("sequence {index} alone"), &[(index, 0, rows)], &plain);
            same(&format!("sequence {index} alone, wide tiles"), &[(index, 0, rows)], &Cut::plain(257));
            let last = [(index, rows - 1, 1)];
            same(&format!("the last row of sequence {index} alone"), &last, &plain);
            let cut = random.below(rows);
            let chunk = [(index, cut, (rows - cut).min(1 + random.below(90)))];
            same(&format!("a chunk of sequence {index}"), &chunk, &plain);
            same(&format!("a chunk of sequence {index}, wide tiles"), &chunk, &Cut::plain(257));
        }
        let tiled: Vec<f32> = bench.run(&everything, &Cut { tiled: true, ..plain });
        let rounded: Vec<f32> = all.iter().map(|&value| bf16_to_f32(f32_to_bf16(value))).collect();
        compare(&bench, "f32, rounded, and bf16", &rounded, &tiled, &everything, &mut found);
        println!(" {} differences so far", found.len());
    }
    assert!(found.is_empty(), "bits differ:\n{}", found.join("\n"));
}

//! Who goes to which expert, the sorted rows, and the sum of what comes back.

use super::super::{ExpertRows, Gather, Norm, Place, Route};
use super::{Bench, FORMS, Memory, Output, Random, Report, checks};
use crate::cuda::inputs::Counts;
use crate::cuda::rows::RowForm;
use crate::experts::route_row;
use crate::operations::Operations;
use crate::program::{Activation, ExpertsSpec};
use crate::reference::ReferenceOperations;

/// What the device must find, computed the long way.
struct Expected {
    chosen: Vec<u32>,
    shares: Vec<f32>,
    places: Vec<u32>,
    /// Rows, first row, matrix.
    groups: Vec<[u32; 3]>,
    total: u32,
}

fn expected(spec: &ExpertsSpec, held: usize, logits: &[f32]) -> Expected {
    let choices = logits.len() / spec.experts * spec.top_k;
    let (mut chosen, mut shares) = (vec![0u32; choices], vec![0f32; choices]);
    let rows = chosen.chunks_exact_mut(spec.top_k).zip(shares.chunks_exact_mut(spec.top_k));
    for (logits, (chosen, shares)) in logits.chunks_exact(spec.experts).zip(rows) {
        route_row(spec.normalise, logits, chosen, shares);
    }
    let (mut places, mut groups, mut next) = (vec![u32::MAX; choices], Vec::new(), 0u32);
    for number in 0..held {
        let expert = (spec.first + number) as u32;
        let members: Vec<usize> = (0..choices).filter(|&choice| chosen[choice] == expert).collect();
        if members.is_empty() {
            continue;
        }
        groups.push([members.len() as u32, next, number as u32]);
        for (index, &choice) in members.iter().enumerate() {
            places[choice] = next + index as u32;
        }
        next = (next + members.len() as u32).next_multiple_of(8);
    }
    Expected { chosen, shares, places, groups, total: next }
}

/// Logits with ties: few distinct values, zeros of both signs, and some apart.
fn logits(random: &mut Random, count: usize) -> Vec<f32> {
    let one = |random: &mut Random| match random.below(4) {
        0 => [-1.0, 0.0, -0.0, 2.5][random.below(4)],
        _ => random.value(),
    };
    (0..count).map(|_| one(random)).collect()
}

fn experts_get_their_rows_and_rows_their_sums(bench: &Bench) {
    let (mut random, mut report) = (Random::new("experts"), Report::default());
    let spec = |experts, first, top_k, normalise| ExpertsSpec {
        experts,
        first,
        top_k,
        normalise,
        activation: Activation::Silu,
    };
    let cases = [
        (1, 1, spec(8, 0, 2, true), 8, 64),
        (1, 1, spec(128, 0, 8, true), 128, 576),
        (8, 8, spec(128, 0, 8, true), 128, 2048),
        (8, 5, spec(16, 4, 8, false), 9, 96),
        (4, 3, spec(60, 0, 16, true), 60, 64),
        (7, 5, spec(1, 0, 1, true), 1, 32),
        (64, 64, spec(60, 0, 4, false), 60, 96),
        (300, 299, spec(8, 0, 2, true), 8, 160),
        (300, 300, spec(8, 4, 2, true), 3, 160),
        (2048, 2048, spec(128, 0, 8, false), 128, 64),
        (33, 33, spec(70, 0, 70, false), 70, 33),
        (40, 40, spec(100, 60, 40, true), 30, 64),
    ];
    for (bucket, rows, spec, held, width) in cases {
        let what = format!("{rows} of {bucket} rows, {spec:?}, {held} held");
        let top_k = spec.top_k;
        let values = logits(&mut random, bucket * spec.experts);
        let wanted = expected(&spec, held, &values[..rows * spec.experts]);
        let sizes = ExpertRows::new(bucket, top_k, held);
        let (router, count) = (bench.upload(&values), bench.upload(&[rows as u32]));
        let [chosen, shares, places] = [(); 3].map(|()| bench.poisoned(4 * bucket * top_k));
        let (groups, total) = (bench.poisoned(sizes.groups * size_of::<Counts>()), bench.poisoned(4));

        let route = Route { logits: router.ptr(), chosen: chosen.ptr(), shares: shares.ptr(), count: count.ptr() };
        bench.run(&what, &bench.kernels.route(bucket, &spec, &route));
        let got = chosen.read::<u32>(0, rows * top_k).expect("a copy");
        report.words(&format!("{what}: chosen"), &wanted.chosen, &got, top_k);
        let got = shares.read::<f32>(0, rows * top_k).expect("a copy");
        report.floats(&format!("{what}: shares"), &wanted.shares, &got, top_k);

        // What follows starts from what is right.
        chosen.write(0, &wanted.chosen).expect("a copy");
        shares.write(0, &wanted.shares).expect("a copy");
        let place = Place {
            chosen: chosen.ptr(),
            places: places.ptr(),
            groups: groups.ptr(),
            total: total.ptr(),
            count: count.ptr(),
        };
        bench.run(&what, &bench.kernels.place(bucket, &spec, held, &place));
        let got = places.read::<u32>(0, rows * top_k).expect("a copy");
        report.words(&format!("{what}: places"), &wanted.places, &got, top_k);
        report.words(&format!("{what}: total"), &[wanted.total], &total.read(0, 1).expect("a copy"), 1);
        assert!(wanted.total as usize <= sizes.sorted && wanted.groups.len() <= sizes.groups, "{what}: sizes");
        let mut counts = vec![0u32; 8 * sizes.groups];
        for (counts, [rows, first_row, matrix]) in counts.chunks_mut(8).zip(&wanted.groups) {
            counts.copy_from_slice(&[*rows, *rows, 0, 0, 0, 0, *first_row, *matrix]);
        }
        let got = groups.read::<u32>(0, counts.len()).expect("a copy");
        report.words(&format!("{what}: groups"), &counts, &got, 8);

        places.write(0, &wanted.places).expect("a copy");
        let input = random.values(bucket * width);
        let from = bench.upload(&input);
        let sorted = || {
            let placed = wanted.places.iter().enumerate().filter(|(_, place)| **place != u32::MAX);
            placed.map(|(choice, &place)| (place as usize, &input[choice / top_k * width..][..width]))
        };
        for form in FORMS {
            if form == RowForm::Q8 && width % 32 != 0 {
                continue;
            }
            let output = Output::new(bench, form, sizes.sorted, width);
            let gather = Gather {
                input: from.ptr(),
                places: places.ptr(),
                output: output.target(),
                count: count.ptr(),
                top_k,
                width,
            };
            bench.run(&what, &bench.kernels.gather(bucket, &gather));
            output.check(&mut report, &format!("{what}: gather"), sorted());
        }

        // All of it at once, or in the launches that many rows take.
        for form in FORMS {
            if form == RowForm::Q8 && width % 32 != 0 {
                continue;
            }
            let [chosen, shares, places] = [(); 3].map(|()| bench.poisoned(4 * bucket * top_k));
            let (groups, total) = (bench.poisoned(sizes.groups * size_of::<Counts>()), bench.poisoned(4));
            let output = Output::new(bench, form, sizes.sorted, width);
            let [chosen_at, shares_at, places_at] = [&chosen, &shares, &places].map(|memory| memory.ptr());
            let count = count.ptr();
            let route = Route { logits: router.ptr(), chosen: chosen_at, shares: shares_at, count };
            let (groups_at, total_at) = (groups.ptr(), total.ptr());
            let place = Place { chosen: chosen_at, places: places_at, groups: groups_at, total: total_at, count };
            let gather = Gather { input: from.ptr(), places: places_at, output: output.target(), count, top_k, width };
            let mut launches = Vec::new();
            bench.kernels.assign(bucket, &spec, held, (&route, &place, &gather), &mut launches);
            launches.iter().for_each(|launch| bench.run(&what, launch));
            let what = format!("{what}: {} launches", launches.len());
            let words = |memory: &Memory| memory.read::<u32>(0, rows * top_k).expect("a copy");
            report.words(&format!("{what}: chosen"), &wanted.chosen, &words(&chosen), top_k);
            let expected: Vec<u32> = wanted.shares.iter().map(|share| share.to_bits()).collect();
            report.words(&format!("{what}: shares"), &expected, &words(&shares), top_k);
            report.words(&format!("{what}: places"), &wanted.places, &words(&places), top_k);
            report.words(&format!("{what}: total"), &[wanted.total], &total.read(0, 1).expect("a copy"), 1);
            report.words(&format!("{what}: groups"), &counts, &groups.read(0, counts.len()).expect("a copy"), 8);
            output.check(&mut report, &format!("{what}: gather"), sorted());
        }

        // The sum, and the norm after it.
        let products = random.values(sizes.sorted * width);
        let (residual, weight) = (random.values(bucket * width), random.weights(width));
        let mut stream = vec![0f32; rows * width];
        for (row, sum) in stream.chunks_exact_mut(width).enumerate() {
            for choice in row * top_k..(row + 1) * top_k {
                if wanted.places[choice] != u32::MAX {
                    let product = &products[wanted.places[choice] as usize * width..][..width];
                    sum.iter_mut().zip(product).for_each(|(sum, value)| *sum += wanted.shares[choice] * value);
                }
            }
            sum.iter_mut().zip(&residual[row * width..]).for_each(|(sum, residual)| *sum += residual);
        }
        let mut normed = vec![f32::NAN; rows * width];
        let mut reference = ReferenceOperations::default();
        reference.rms_norm(&stream, &weight, 1e-5, false, &mut normed).expect("one thread");
        let (from, by, held) = (bench.upload(&products), bench.upload(&weight), bench.upload(&residual));
        let output = Output::new(bench, RowForm::F32, bucket, width);
        let norm = Norm {
            input: from.ptr(),
            experts: Some((places.ptr(), shares.ptr(), top_k)),
            residual: held.ptr(),
            stream: held.ptr(),
            second: Some((by.ptr(), 1e-5)),
            output: Some(output.target()),
            count: count.ptr(),
            width,
            ..Norm::default()
        };
        bench.run(&what, &bench.kernels.norm(bucket, &norm));
        let got = held.read::<f32>(0, rows * width).expect("a copy");
        report.floats(&format!("{what}: sums"), &stream, &got, width);
        output.check(&mut report, &format!("{what}: norm of sums"), normed.chunks(width).enumerate());
    }
    report.finish("experts");
}

checks!(experts_get_their_rows_and_rows_their_sums);

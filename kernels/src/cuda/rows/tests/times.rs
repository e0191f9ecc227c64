//! How long the kernels take, where `POLYLINK_GPU_TIMES` is set: launched one after the other, as in a step.

use super::super::{Append, Gather, Norm, Place, RopeAddresses, Route, RowOutput};
use super::{Bench, FORMS, Output, Random};
use crate::backend::{KvDtype, KvSpec};
use crate::cuda::driver::Launch;
use crate::cuda::inputs::StepInputs;
use crate::cuda::rows::q8_pitch;
use crate::program::{Activation, AttentionSpec, ExpertsSpec};

const LAUNCHES: usize = 50;

/// Prints microseconds of one of many launches, and the bandwidth that these bytes make of it.
fn time(bench: &Bench, what: &str, launch: &Launch, bytes: usize) {
    let graph = bench
        .device()
        .capture(|| (0..LAUNCHES).try_for_each(|_| launch.run(bench.device())))
        .expect("launches can be captured");
    graph.launch().expect("a launch");
    let seconds = bench.device().time(9, || graph.launch()).expect("a time") / LAUNCHES as f64;
    println!("{what}: {:.2} µs, {:.0} GB/s", seconds * 1e6, bytes as f64 / seconds * 1e-9);
}

#[test]
fn times() {
    if std::env::var_os("POLYLINK_GPU_TIMES").is_none() {
        println!("skipped: POLYLINK_GPU_TIMES is not set");
        return;
    }
    let Some(bench) = Bench::gpu() else { return };
    let mut random = Random::new("times");
    let (width, mlp) = (4096, 14_336);
    let weight = bench.upload(&random.weights(width));
    let input = bench.upload(&random.values(8192 * width));
    for rows in [1, 8, 64, 512, 2048, 8192] {
        let count = bench.upload(&[rows as u32]);
        for form in FORMS {
            let output = Output::new(&bench, form, rows, width);
            let norm = Norm {
                input: input.ptr(),
                second: Some((weight.ptr(), 1e-5)),
                output: Some(output.target()),
                count: count.ptr(),
                width,
                ..Norm::default()
            };
            let (what, each) = (format!("norm {rows} × {width} to {form:?}"), [8, 6, 5][form as usize]);
            time(&bench, &what, &bench.kernels.norm(rows, &norm), each * rows * width);
        }
        for form in FORMS.into_iter().filter(|_| rows <= 1024) {
            let output = Output::new(&bench, form, rows, mlp);
            let target = output.target();
            let launch = bench.kernels.gated_mul(rows, Activation::Silu, input.ptr(), mlp, &target, count.ptr());
            let (what, each) = (format!("gated {rows} × {mlp} to {form:?}"), [12, 10, 9][form as usize]);
            time(&bench, &what, &launch, each * rows * mlp);
        }
    }
    appends(&bench, &mut random);
    experts(&bench, &mut random);
}

fn appends(bench: &Bench, random: &mut Random) {
    let spec = AttentionSpec { query_heads: 32, kv_heads: 8, head_dim: 128, scale: 1.0, window: None, soft_cap: None };
    let width = 48 * 128;
    for dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8] {
        let kv = KvSpec { layers: 1, heads: 8, head_dim: 128, dtype };
        for rows in [1usize, 64, 2048] {
            let blocks = rows.div_ceil(32).max(64);
            let qkv = bench.upload(&random.values(rows * width));
            let positions: Vec<u32> = (0..rows as u32).collect();
            let tables: Vec<u32> = (0..blocks as u32).collect();
            let words = [&positions, &vec![0; rows], &vec![0], &vec![0], &tables].map(|words| bench.upload(words));
            let counts = bench.upload(&[rows as u32, 0, 1, 0, 0, 0, 0, 0]);
            let turns = bench.upload(&random.values(rows * 64));
            let cache = bench.poisoned(blocks * 2 * 8 * 32 * 132 * 4);
            let inputs = StepInputs {
                counts: counts.ptr(),
                tokens: 0,
                positions: words[0].ptr(),
                sequence_of: words[1].ptr(),
                first_row: 0,
                sequence_rows: 0,
                first_position: 0,
                table_start: words[2].ptr(),
                flags: words[3].ptr(),
                wanted: 0,
                sketch_key: 0,
                sketch_position: 0,
                plan: 0,
                block_tables: words[4].ptr(),
            };
            let append = Append {
                spec: &spec,
                kv: &kv,
                layer: 0,
                qkv: qkv.ptr(),
                norms: None,
                rope: RopeAddresses { pairs: 64, sine: turns.ptr(), cosine: turns.ptr(), ..RopeAddresses::default() },
                inputs: &inputs,
                cache: cache.ptr(),
                paired: false,
            };
            let what = format!("append {dtype:?}, {rows} rows of 32 + 2 × 8 heads of 128");
            time(bench, &what, &bench.kernels.append(rows, &append), 2 * rows * width * 4);
        }
    }
}

fn experts(bench: &Bench, random: &mut Random) {
    let (top_k, width) = (8, 2048);
    let spec = ExpertsSpec { experts: 128, first: 0, top_k, normalise: true, activation: Activation::Silu };
    for rows in [1usize, 64, 2048] {
        let logits = bench.upload(&random.values(rows * 128));
        let count = bench.upload(&[rows as u32]);
        let [chosen, shares, places] = [(); 3].map(|()| bench.poisoned(4 * rows * top_k));
        let (groups, total) = (bench.poisoned(32 * 128), bench.poisoned(4));
        let route = Route { logits: logits.ptr(), chosen: chosen.ptr(), shares: shares.ptr(), count: count.ptr() };
        let launch = bench.kernels.route(rows, &spec, &route);
        bench.run("route", &launch);
        time(bench, &format!("route {rows} rows, 8 of 128"), &launch, rows * 128 * 4);
        let place = Place {
            chosen: chosen.ptr(),
            places: places.ptr(),
            groups: groups.ptr(),
            total: total.ptr(),
            count: count.ptr(),
        };
        let launch = bench.kernels.place(rows, &spec, 128, &place);
        bench.run("place", &launch);
        time(bench, &format!("place {rows} rows, 8 of 128"), &launch, rows * top_k * 8);
        let input = bench.upload(&random.values(rows * width));
        let sorted = rows * top_k + 8 * 128;
        let output = bench.poisoned(sorted * q8_pitch(width) * 2);
        let gather = Gather {
            input: input.ptr(),
            places: places.ptr(),
            output: RowOutput::bf16_tiled(output.ptr(), sorted),
            count: count.ptr(),
            top_k,
            width,
        };
        let what = format!("gather {rows} × 8 rows of {width} to bf16");
        time(bench, &what, &bench.kernels.gather(rows, &gather), rows * top_k * width * 6);
        let mut launches = Vec::new();
        bench.kernels.assign(rows, &spec, 128, (&route, &place, &gather), &mut launches);
        if let [launch] = launches.as_slice() {
            time(bench, &format!("all three of {rows} rows"), launch, rows * top_k * width * 6);
        }
    }
}

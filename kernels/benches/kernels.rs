//! What single kernels reach of what this machine can do: `cargo bench -p polylink-kernels --bench kernels
//! [-- product order convert attention rope norm gate sketch sample… q8_0… avx512-bf16… THREADS…]`.
//!
//! Sizes are those of a 0.5 B model (hidden 896, 14 query and 2 KV heads of 64, MLP 4864, vocabulary 151,936). The limit is
//! the longer of: its multiplications from registers only, its bytes read from a buffer of that size. Both are measured
//! before each kernel, on as many threads, and so is the kernel: medians of shares. What has no multiplications to speak
//! of (norms, exponentials) has the limit of reading. For a machine that does nothing else.

use std::num::NonZeroUsize;
use std::time::Instant;

use polylink_kernels::bench::{Bench, Kernel, Sequences};
use polylink_kernels::{BackendError, CpuOptions, InstructionSet, KvDtype, SampleParams, WeightForm, limits};

const FORMS: [WeightForm; 8] = [
    WeightForm::Float,
    WeightForm::Stored,
    WeightForm::Bf16,
    WeightForm::Q8_0,
    WeightForm::Q4_0,
    WeightForm::Q4K,
    WeightForm::Q5K,
    WeightForm::Q6K,
];
const HIDDEN: usize = 896;
const MLP: usize = 4864;
const VOCABULARY: usize = 151_936;
const HEADS: (usize, usize, usize) = (14, 2, 64);

/// Seconds that one measurement takes about, and how many there are.
const SECONDS: f64 = 0.02;
const MEASUREMENTS: usize = 7;

/// Kernels by name, each with a description.
fn kernels() -> Vec<(&'static str, String, Kernel)> {
    let mut all = Vec::new();
    for form in FORMS {
        for (rows, outputs, inputs) in [
            (512, MLP, HIDDEN),
            (512, HIDDEN, MLP),
            (32, MLP, HIDDEN),
            (8, MLP, HIDDEN),
            (1, MLP, HIDDEN),
            (1, VOCABULARY, HIDDEN),
        ] {
            // Superblocks are 256 inputs.
            let superblocks = matches!(form, WeightForm::Q4K | WeightForm::Q5K | WeightForm::Q6K);
            let inputs = if superblocks { usize::next_multiple_of(inputs, 256) } else { inputs };
            let kernel = Kernel::Product { form, sizes: (rows, outputs, inputs), ranges: false };
            all.push(("product", format!("{form:?} {rows} × {outputs} × {inputs}"), kernel));
        }
        // What it costs that a down projection is summed in ranges.
        for (rows, ranges) in [512, 32, 1].into_iter().flat_map(|rows| [(rows, false), (rows, true)]) {
            let what = if ranges { "in ranges" } else { "in one" };
            let kernel = Kernel::Product { form, sizes: (rows, HIDDEN, 5120), ranges };
            all.push(("order", format!("{form:?} {rows} × {HIDDEN} × 5120 {what}"), kernel));
        }
    }
    for form in [WeightForm::Bf16, WeightForm::Q8_0] {
        for rows in [512, 32] {
            let kernel = Kernel::Convert { form, sizes: (rows, MLP) };
            all.push(("convert", format!("for {form:?} {rows} × {MLP}"), kernel));
        }
    }
    for kv in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8, KvDtype::Fp8] {
        for (count, rows, context) in [(1, 512, 512), (1, 512, 4096), (32, 1, 192), (1, 1, 4096), (1, 1, 32_768)] {
            let sequences = Sequences { count, rows, context, heads: HEADS, kv };
            let name = format!("{kv:?} {count} × {rows} rows of {context}");
            all.push(("attention", name.clone(), Kernel::Attention(sequences)));
            if context <= 512 {
                all.push(("rope", name, Kernel::RopeAppend(sequences)));
            }
        }
    }
    for rows in [512, 32, 1] {
        all.push(("norm", format!("{rows} × {HIDDEN}"), Kernel::RmsNorm(rows, HIDDEN)));
        all.push(("gate", format!("{rows} × {MLP}"), Kernel::GatedMul(rows, MLP)));
    }
    all.push(("sketch", format!("32 × {HIDDEN}"), Kernel::Sketch(32, HIDDEN)));
    let drawn = SampleParams { temperature: 1.0, ..SampleParams::greedy() };
    for (what, params, logprobs) in [
        ("greedy", SampleParams::greedy(), None),
        ("greedy, 20 logprobs", SampleParams::greedy(), Some(20)),
        ("temperature 1", drawn, None),
        ("temperature 1, top-p 0.95", SampleParams { top_p: 0.95, ..drawn }, None),
        ("temperature 1, top-k 40", SampleParams { top_k: 40, ..drawn }, None),
    ] {
        let kernel = Kernel::Sample { sizes: (32, VOCABULARY), params, logprobs };
        all.push(("sample", format!("32 × {VOCABULARY}, {what}"), kernel));
    }
    all
}

/// Seconds of one run, and the share of the limit: medians.
fn measure(options: CpuOptions, kernel: Kernel, threads: usize) -> Result<(f64, f64), BackendError> {
    let (mut bench, work) = (Bench::new(options, kernel)?, kernel.work());
    let begin = Instant::now();
    bench.run()?;
    let runs = (SECONDS / begin.elapsed().as_secs_f64()).clamp(1.0, 10_000.0) as usize;
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..MEASUREMENTS {
        let read = limits::read_bandwidth(work.bytes as usize, threads).map_or(0.0, |rate| work.bytes / rate);
        let products =
            if work.operations > 0.0 { work.operations / limits::product_peak(work.unit, threads) } else { 0.0 };
        bench.run()?; // caches are warm as in a step
        let begin = Instant::now();
        (0..runs).try_for_each(|_| bench.run())?;
        let time = begin.elapsed().as_secs_f64() / runs as f64;
        times.push(time);
        shares.push(read.max(products) / time);
    }
    times.sort_by(f64::total_cmp);
    shares.sort_by(f64::total_cmp);
    Ok((times[MEASUREMENTS / 2], shares[MEASUREMENTS / 2]))
}

fn main() -> Result<(), BackendError> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let named = |what: &str| arguments.iter().any(|argument| argument.eq_ignore_ascii_case(what));
    // What is named is measured; of a kind of which nothing is named, all (of instruction sets: the best).
    let mut sets: Vec<InstructionSet> = InstructionSet::ALL.into_iter().filter(|set| named(&set.to_string())).collect();
    if sets.is_empty() {
        sets.push(InstructionSet::detect());
    }
    let mut threads: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if threads.is_empty() {
        threads = vec![1, 2];
    }
    let kernels = kernels();
    let any_kernel = kernels.iter().any(|(name, ..)| named(name));
    let any_form = FORMS.iter().any(|form| named(&format!("{form:?}")));
    for set in sets {
        if !set.available() {
            println!("skipped {set}: this machine does not have it");
            continue;
        }
        for &threads in &threads {
            for (name, what, kernel) in &kernels {
                let form = match kernel {
                    Kernel::Product { form, .. } | Kernel::Convert { form, .. } => Some(format!("{form:?}")),
                    _ => None,
                };
                if (any_kernel && !named(name)) || (any_form && !form.is_some_and(|form| named(&form))) {
                    continue;
                }
                let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions: Some(set) };
                let (time, share) = measure(options, *kernel, threads)?;
                let work = kernel.work();
                println!(
                    "{set} threads {threads} {name:<9} {what:<34} {:>10.1} µs {:>8.1} Gop/s {:>7.2} GB/s {:>5.0} % of the limit",
                    time * 1e6,
                    work.operations / time / 1e9,
                    work.bytes / time / 1e9,
                    100.0 * share,
                );
            }
        }
    }
    Ok(())
}

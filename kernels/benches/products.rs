//! Rates of the matrix products: `cargo bench -p polylink-kernels --bench products [-- avx512-bf16… q8_0… threads…]`.
//!
//! Shapes are those of a 0.5 B model (hidden 896, MLP 4864). Wall time: for a machine that does nothing else.

use std::num::NonZeroUsize;
use std::time::Instant;

use polylink_kernels::bench::Product;
use polylink_kernels::{BackendError, CpuOptions, InstructionSet, WeightForm};

/// Least of fifteen means: what disturbs a run makes it longer, never shorter.
fn time(product: &mut Product, runs: usize) -> Result<f64, BackendError> {
    product.run()?;
    let mut least = f64::INFINITY;
    for _ in 0..15 {
        let start = Instant::now();
        (0..runs).try_for_each(|_| product.run())?;
        least = least.min(start.elapsed().as_secs_f64() / runs as f64);
    }
    Ok(least)
}

/// Forms and the bytes of a weight.
const FORMS: [(WeightForm, f64); 7] = [
    (WeightForm::Float, 2.0),
    (WeightForm::Bf16, 2.0),
    (WeightForm::Q8_0, 1.0625),
    (WeightForm::Q4_0, 0.5625),
    (WeightForm::Q4K, 0.578),
    (WeightForm::Q5K, 0.703),
    (WeightForm::Q6K, 0.828),
];

fn named(arguments: &[String], what: &impl ToString) -> bool {
    arguments.iter().any(|argument| argument.eq_ignore_ascii_case(&what.to_string()))
}

fn main() -> Result<(), BackendError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What is named is measured; of a kind of which nothing is named, all.
    let sets: Vec<InstructionSet> = InstructionSet::ALL.into_iter().filter(|set| named(&arguments, set)).collect();
    let forms: Vec<_> = FORMS.into_iter().filter(|(form, _)| named(&arguments, &format!("{form:?}"))).collect();
    let sets = if sets.is_empty() { InstructionSet::ALL.to_vec() } else { sets };
    let forms = if forms.is_empty() { FORMS.to_vec() } else { forms };
    let threads: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    for set in sets {
        if !set.available() || set == InstructionSet::Baseline {
            println!("skipped {set}: this machine does not have it, or it is not meant to be fast");
            continue;
        }
        for &threads in &threads {
            let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions: Some(set) };
            for &(form, bytes) in &forms {
                for (rows, outputs, inputs) in [
                    (512, 4864, 896),
                    (512, 896, 4864),
                    (32, 4864, 896),
                    (8, 4864, 896),
                    (1, 4864, 896),
                    (1, 65536, 896),
                ] {
                    // Superblocks are 256 inputs.
                    let superblocks = matches!(form, WeightForm::Q4K | WeightForm::Q5K | WeightForm::Q6K);
                    let inputs = if superblocks { usize::next_multiple_of(inputs, 256) } else { inputs };
                    let weights = (outputs * inputs) as f64;
                    let runs = (1.5e9 / (2.0 * weights * rows as f64)).clamp(1.0, 200.0) as usize;
                    let time = time(&mut Product::new(options, form, (rows, outputs, inputs))?, runs)?;
                    println!(
                        "{set:<12} {form:?} threads {threads} {rows:>4} × {outputs} × {inputs}: {:>7.1} GOP/s, weights at {:>6.2} GB/s",
                        2.0 * weights * rows as f64 / time / 1e9,
                        weights * bytes / time / 1e9,
                    );
                }
            }
        }
    }
    Ok(())
}

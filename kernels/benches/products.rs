//! Rates of the matrix products: `cargo bench -p polylink-kernels --bench products [-- threads…]`.
//!
//! Shapes are those of a 0.5 B model (hidden 896, MLP 4864). Time is that of the engine's thread on a processor, where the
//! system tells it: what other processes were given does not count.

use std::num::NonZeroUsize;
use std::time::Instant;

use polylink_kernels::bench::Product;
use polylink_kernels::{BackendError, CpuOptions, InstructionSet, WeightForm};

fn seconds(start: Instant) -> f64 {
    let on_cpu = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = on_cpu.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds * 1e-9)
}

/// Median of five means.
fn time(product: &mut Product, runs: usize) -> Result<f64, BackendError> {
    let start = Instant::now();
    product.run()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let before = seconds(start);
        (0..runs).try_for_each(|_| product.run())?;
        times.push((seconds(start) - before) / runs as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[2])
}

fn main() -> Result<(), BackendError> {
    let threads: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    for set in InstructionSet::ALL {
        if !set.available() || set == InstructionSet::Baseline {
            println!("skipped {set}: this machine does not have it, or it is not meant to be fast");
            continue;
        }
        for &threads in &threads {
            let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions: Some(set) };
            for (form, bytes) in [
                (WeightForm::Float, 2.0),
                (WeightForm::Bf16, 2.0),
                (WeightForm::Q8_0, 1.0625),
                (WeightForm::Q4_0, 0.5625),
                (WeightForm::Q4K, 0.578),
                (WeightForm::Q5K, 0.703),
                (WeightForm::Q6K, 0.828),
            ] {
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
                    let runs = (4e9 / (2.0 * weights * rows as f64)).clamp(1.0, 200.0) as usize;
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

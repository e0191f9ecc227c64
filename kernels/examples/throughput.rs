//! Tokens per second of a nano-shaped random model on this machine, per weight form and number of threads.
//!
//! `cargo run -p polylink-kernels --example throughput [-- threads…]`

#[path = "../tests/common/mod.rs"]
mod common;

use std::num::NonZeroUsize;
use std::time::Instant;

use common::*;
use polylink_kernels::*;

const NANO: Sizes = Sizes {
    layers: 5,
    hidden: 288,
    query_heads: 9,
    kv_heads: 3,
    head_dim: 32,
    mlp: 768,
    vocabulary: 2048,
    window: None,
    kv_dtype: KvDtype::F32,
};

/// Seconds that the engine's thread has computed for: what the system gave other processes does not count. Where the
/// system does not tell, wall time.
fn seconds(start: Instant) -> f64 {
    let on_cpu = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = on_cpu.and_then(|line| line.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds * 1e-9)
}

/// Mean seconds of one call (the system's accounting is too coarse for single ones).
fn mean(runs: usize, mut call: impl FnMut(usize) -> Result<(), BackendError>) -> Result<f64, BackendError> {
    call(0)?;
    let start = Instant::now();
    let before = seconds(start);
    (0..runs).try_for_each(&mut call)?;
    Ok((seconds(start) - before) / runs as f64)
}

fn main() -> Result<(), BackendError> {
    let threads: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    let kv = KvSpec::f32(NANO.layers, NANO.kv_heads, NANO.head_dim);
    for threads in threads {
        for form in [WeightForm::Float, WeightForm::Bf16, WeightForm::Q8_0, WeightForm::Q4_0] {
            let options = CpuOptions { threads: NonZeroUsize::new(threads), instructions: None };
            let mut backend = CpuBackend::new(options)?;
            build(&mut backend, &NANO, Dtype::Bf16, form, &Split::whole(&NANO), limits(), Box::new(Solo))?;
            let chunk = |slot, first, length, wanted| Chunk { slot, first, tokens: tokens(1, length, 2048), wanted };
            let mut run = |chunks: &[Chunk]| forward(&mut backend, &kv, chunks).map(|_| ());
            let prefill = mean(8, |_| run(&[chunk(0, 0, 512, 1)]))?;
            let decode = mean(150, |step| run(&[chunk(0, 512 + step, 1, 1)]))?;
            let batch: Vec<Chunk> = (0..4).map(|slot| chunk(slot, 600, 1, 1)).collect();
            let batched = mean(100, |_| run(&batch))?;
            println!(
                "{} {form:?} threads {threads}: prefill {:.0} tok/s, decode {:.0} tok/s, decode of 4 {:.0} tok/s",
                backend.name(),
                512.0 / prefill,
                1.0 / decode,
                4.0 / batched
            );
        }
    }
    Ok(())
}

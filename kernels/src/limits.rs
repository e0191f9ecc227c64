//! What this machine can do at most: the limits that figures are shares of, measured in the same run as these.
//!
//! Reading is memory only, products are registers only: nothing that computes a model is faster than either. Both are
//! the best of several tries, as a limit is, on so many threads at once.
#![allow(unsafe_code)] // loops compiled for an instruction set

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::cpu::isa::{InstructionSet, multiversioned};
use crate::cpu::lanes::{Lanes, WIDTH};
use crate::cpu::tiles;
use crate::memory::Aligned;

const TRIES: usize = 5;

/// What a product is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Fused multiply-adds of f32.
    F32,
    /// Dot products of bf16 pairs, in tiles where there are some, or f32 where that is faster.
    Bf16,
    /// Dot products of four bytes, in tiles where there are some, or f32 where that is faster.
    Int8,
}

/// Wall time of `work`, given each thread's number, on `threads` threads that start together; in seconds.
fn together(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread| {
        barrier.wait();
        let begun = Instant::now();
        work(thread);
        (begun, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let run = &run;
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        handles.into_iter().map(|handle| handle.join().expect("adding and multiplying do not panic")).collect()
    });
    let begun = times.iter().map(|(begun, _)| *begun).min();
    let ended = times.iter().map(|(_, ended)| *ended).max();
    begun.zip(ended).map_or(0.0, |(begun, ended)| (ended - begun).as_secs_f64())
}

/// Reads all lines, `STREAMS` parts of the slice side by side, and adds them up.
///
/// # Safety
/// The machine has `L`.
#[inline(always)]
unsafe fn sum<L: Lanes, const STREAMS: usize>(values: &[f32], result: &mut f32) {
    /// Vectors of each stream that are read at once: they hide the additions' latency.
    const EACH: usize = 4;
    let part = values.len() / STREAMS / (EACH * WIDTH) * (EACH * WIDTH);
    // SAFETY: the machine has L (the caller's promise); every vector lies within its stream's part.
    unsafe {
        let mut sums = [[L::zero(); EACH]; STREAMS];
        let mut at = 0;
        while at < part {
            for (stream, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = L::add(*sum, L::load(values.as_ptr().add(stream * part + at + i * WIDTH)));
                }
            }
            at += EACH * WIDTH;
        }
        *result = total::<L>(sums.as_flattened());
    }
}

#[inline(always)]
unsafe fn sum_one_of<L: Lanes>(values: &[f32], result: &mut f32) {
    // SAFETY: as the caller's.
    unsafe { sum::<L, 1>(values, result) }
}

#[inline(always)]
unsafe fn sum_four_of<L: Lanes>(values: &[f32], result: &mut f32) {
    // SAFETY: as the caller's.
    unsafe { sum::<L, 4>(values, result) }
}

multiversioned!(unsafe fn sum_one(values: &[f32], result: &mut f32) = sum_one_of);
multiversioned!(unsafe fn sum_four(values: &[f32], result: &mut f32) = sum_four_of);

/// Bytes that are read in one try at least: smaller buffers are read again and again.
const READ_BYTES: usize = 64 << 20;

/// Bytes per second that `threads` threads read together from a buffer of `bytes`, a share each, in one stream or four,
/// whichever is faster here. None if there is not that much memory.
pub fn read_bandwidth(bytes: usize, threads: usize) -> Option<f64> {
    let set = InstructionSet::detect();
    let share = (bytes / size_of::<f32>() / threads).next_multiple_of(16 * WIDTH);
    let mut buffer = Aligned::<f32>::try_zeroed(share * threads)?;
    // Pages of zeros may be kept once only, by the system or by what it runs on.
    buffer
        .iter_mut()
        .zip(0u32..)
        .for_each(|(value, number)| *value = f32::from_bits(0x3f80_0000 | (number % (1 << 20))));
    let size = share * threads * size_of::<f32>();
    let passes = READ_BYTES.div_ceil(size);
    let part = |thread: usize| &buffer[thread * share..][..share];
    let read = |sum: unsafe fn(InstructionSet, &[f32], &mut f32)| {
        together(threads, |thread| {
            let mut result = 0.0;
            for _ in 0..passes {
                // SAFETY: `detect` gives a set that this machine has.
                unsafe { sum(set, black_box(part(thread)), &mut result) };
            }
            black_box(result);
        })
    };
    let tries = (0..TRIES).flat_map(|_| [read(sum_one), read(sum_four)]);
    let best = tries.fold(f64::INFINITY, f64::min);
    Some((size * passes) as f64 / best)
}

/// Operations (a multiply-add is two) per second of `threads` threads together, registers only, with the instructions
/// that the CPU backend has for this unit.
pub fn product_peak(unit: Unit, threads: usize) -> f64 {
    let set = InstructionSet::detect();
    let rate_of = |operations: usize, rounds: usize, run: &(dyn Fn(usize, &mut f32) + Sync)| {
        let work = |_| {
            let mut result = 0.0;
            run(rounds, &mut result);
            black_box(result);
        };
        let best = (0..TRIES).map(|_| together(threads, work)).fold(f64::INFINITY, f64::min);
        (rounds * operations * threads) as f64 / best
    };
    // SAFETY (both): `detect` gives a set that this machine has; the loops touch nothing but their own locals.
    let rate = |operations: usize, run: unsafe fn(InstructionSet, usize, &mut f32)| {
        rate_of(operations * WIDTH, 1 << 19, &|rounds, result| unsafe { run(set, rounds, result) })
    };
    let tiles = |bytes: bool| {
        let operations = 2 * tiles::round_products(bytes);
        let run = |rounds: usize, result: &mut f32| unsafe { tiles::rounds(set, bytes, rounds, result) };
        if set.has_tiles() { rate_of(operations, 1 << 16, &run) } else { 0.0 }
    };
    let f32s = rate(2 * FEW, fma_few).max(rate(2 * MANY, fma_many));
    match unit {
        Unit::F32 => f32s,
        Unit::Bf16 => f32s.max(rate(4 * FEW, pairs_few)).max(rate(4 * MANY, pairs_many)).max(tiles(false)),
        Unit::Int8 => f32s.max(rate(8 * FEW, quads_few)).max(rate(8 * MANY, quads_many)).max(tiles(true)),
    }
}

/// Sums under way at once: as many as AVX2 has registers for, and as many as hide the latencies of AVX-512.
const FEW: usize = 6;
const MANY: usize = 12;

multiversioned!(unsafe fn fma_few(rounds: usize, result: &mut f32) = fma_few_of);
multiversioned!(unsafe fn fma_many(rounds: usize, result: &mut f32) = fma_many_of);
multiversioned!(unsafe fn pairs_few(rounds: usize, result: &mut f32) = pairs_few_of);
multiversioned!(unsafe fn pairs_many(rounds: usize, result: &mut f32) = pairs_many_of);
multiversioned!(unsafe fn quads_few(rounds: usize, result: &mut f32) = quads_few_of);
multiversioned!(unsafe fn quads_many(rounds: usize, result: &mut f32) = quads_many_of);

/// Defines the bodies for both numbers of sums.
macro_rules! bodies {
    ($($name:ident = $body:ident::<$count:ident>;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name<L: Lanes>(rounds: usize, result: &mut f32) {
                // SAFETY: as the caller's.
                unsafe { $body::<L, $count>(rounds, result) }
            }
        )*
    };
}
bodies! {
    fma_few_of = fmas::<FEW>;
    fma_many_of = fmas::<MANY>;
    pairs_few_of = pairs::<FEW>;
    pairs_many_of = pairs::<MANY>;
    quads_few_of = quads::<FEW>;
    quads_many_of = quads::<MANY>;
}

#[inline(always)]
unsafe fn fmas<L: Lanes, const SUMS: usize>(rounds: usize, result: &mut f32) {
    // SAFETY: the machine has L (the caller's promise); pointers are to locals that are long enough.
    unsafe {
        let (a, b) = (L::splat(black_box(1e-3)), L::splat(black_box(1e-3)));
        let mut sums = [L::zero(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = L::fma(a, b, *sum);
            }
        }
        *result = total::<L>(&sums);
    }
}

#[inline(always)]
unsafe fn pairs<L: Lanes, const SUMS: usize>(rounds: usize, result: &mut f32) {
    // SAFETY: as above.
    unsafe {
        let weights = L::load_pairs(black_box([0x3a83u16; 2 * WIDTH]).as_ptr());
        let activations = [0x3a83u16; 2];
        let mut sums = [L::zero(); SUMS];
        for _ in 0..rounds {
            let activations = black_box(activations.as_ptr()); // not known to be the same in every round
            for sum in &mut sums {
                *sum = L::dot_pairs(*sum, weights, activations);
            }
        }
        *result = total::<L>(&sums);
    }
}

#[inline(always)]
unsafe fn quads<L: Lanes, const SUMS: usize>(rounds: usize, result: &mut f32) {
    // SAFETY: as above; `store_quad` writes at most eight bytes.
    unsafe {
        let weights = L::load_quads(black_box([3u8; 4 * WIDTH]).as_ptr());
        let mut activations = [0i8; 8];
        L::store_quad(activations.as_mut_ptr(), [1, -1, 1, -2]);
        let mut sums = [L::splat_i32(0); SUMS];
        for _ in 0..rounds {
            let activations = black_box(activations.as_ptr()); // not known to be the same in every round
            for sum in &mut sums {
                *sum = L::dot_quads(*sum, weights, activations);
            }
        }
        *result = total::<L>(&sums.map(|sum| L::to_f32(sum)));
    }
}

/// Makes every sum count.
#[inline(always)]
unsafe fn total<L: Lanes>(sums: &[L::F32]) -> f32 {
    let mut all = [0.0; WIDTH];
    // SAFETY: as the caller's; the array holds one vector.
    unsafe {
        let sum = sums.iter().fold(L::zero(), |total, sum| L::add(total, *sum));
        L::store(all.as_mut_ptr(), sum);
    }
    all.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read_once() {
        let values: Vec<f32> = (0..512).map(|i| i as f32).collect();
        for sum in [sum_one, sum_four] {
            let mut result = 0.0;
            // SAFETY: the machine has the set.
            unsafe { sum(InstructionSet::detect(), &values, &mut result) };
            assert_eq!(result, (0..512).sum::<i32>() as f32);
        }
    }

    #[test]
    fn the_loops_add_up_what_they_are_said_to() {
        let set = InstructionSet::detect();
        let run = |run: unsafe fn(InstructionSet, usize, &mut f32)| {
            let mut result = 0.0;
            // SAFETY: the machine has the set.
            unsafe { run(set, 100, &mut result) };
            f64::from(result)
        };
        let value = f64::from(f32::from_bits(0x3a83 << 16));
        let lanes = (100 * FEW * WIDTH) as f64;
        let near = |seen: f64, expected: f64| (seen / expected - 1.0).abs() < 1e-4;
        assert!(near(run(fma_few), lanes * 1e-6) && near(run(fma_many), 2.0 * lanes * 1e-6));
        assert!(near(run(pairs_few), lanes * 2.0 * value * value), "{}", run(pairs_few));
        assert!(near(run(quads_few), lanes * -3.0), "{}", run(quads_few));
    }

    /// Emulated: a byte of every four is 1, both of a pair are.
    #[test]
    fn rounds_of_tiles_add_up_what_they_are_said_to() {
        for (bytes, ones) in [(true, 4), (false, 1)] {
            let mut result = 0.0;
            // SAFETY: any machine has the emulation.
            unsafe { tiles::rounds(InstructionSet::AmxEmulated, bytes, 3, &mut result) };
            assert_eq!(result as usize * ones, 3 * tiles::round_products(bytes));
        }
    }

    #[test]
    fn limits_are_rates_of_a_machine() {
        let read = read_bandwidth(8 << 20, 2).unwrap();
        assert!((1e8..1e13).contains(&read), "{read} bytes per second");
        let (f32s, int8) = (product_peak(Unit::F32, 1), product_peak(Unit::Int8, 1));
        assert!(f32s > 1e7 && int8 >= 0.5 * f32s, "{f32s} and {int8} operations per second");
    }
}

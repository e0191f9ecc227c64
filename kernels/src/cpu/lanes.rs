//! Sixteen lanes of f32 or i32, per instruction set: the few operations that the hot loops are written in.
//!
//! The loops are generic over [`Lanes`] and compiled once per instruction set (`#[target_feature]` on the outermost
//! function, everything below inlined into it). All implementations are IEEE per lane, so they give the same bits.
//! [`Plain`] is arrays: on x86-64 without AVX2 it calls the C library's `fmaf`, correct and slow.
#![allow(unsafe_code)] // vector intrinsics

use polylink_protocol::exact_math::{bf16_to_f32, f16_to_f32};

use crate::operations::{flush, fma_flushed};

pub(crate) mod bits;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

/// What every processor of the compiler's target has.
#[cfg(target_arch = "aarch64")]
pub(crate) type Baseline = Neon<false>;
/// What every processor of the compiler's target has.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type Baseline = Plain;

/// Lanes per vector.
pub(crate) const WIDTH: usize = 16;

/// One instruction set. All methods are unsafe: the machine must have it, and pointers must be good for the access.
pub(crate) trait Lanes: Copy {
    type F32: Copy;
    type I32: Copy;
    /// Whether there are 32 registers of 16 lanes: products then keep more sums in them.
    const WIDE: bool;

    unsafe fn zero() -> Self::F32;
    unsafe fn splat(x: f32) -> Self::F32;
    /// 16 f32; any alignment.
    unsafe fn load(from: *const f32) -> Self::F32;
    /// 16 bf16, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::F32;
    /// 16 bytes with a sign, as f32.
    unsafe fn load_i8(from: *const i8) -> Self::F32;
    unsafe fn store(to: *mut f32, x: Self::F32);
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn sub(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn div(a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger one of two numbers (neither is NaN).
    unsafe fn max(a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller one of two numbers (neither is NaN).
    unsafe fn min(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn abs(a: Self::F32) -> Self::F32;
    /// The largest of all lanes (none is NaN).
    unsafe fn largest(a: Self::F32) -> f32;
    /// Asks for the cache line at `at` ahead of its use; any address will do.
    unsafe fn prefetch(at: *const u8);
    /// a·b + c, rounded once.
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    /// 16 binary16 values, widened.
    unsafe fn load_f16(from: *const u16) -> Self::F32;
    /// 16 numbers of e4m3, widened, a 256th of each: moved to an f16's places their bits are that.
    #[inline(always)]
    unsafe fn load_e4m3_small(from: *const u8) -> Self::F32 {
        // SAFETY: the caller's pointer is good for 16 bytes; the machine has these instructions.
        unsafe {
            let mut halves = [0u16; WIDTH];
            for (i, half) in halves.iter_mut().enumerate() {
                *half = (i16::from(*from.add(i) as i8) << 7) as u16 & 0xbfff;
            }
            Self::load_f16(halves.as_ptr())
        }
    }
    /// 16 numbers of e4m3, widened.
    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self::F32 {
        // SAFETY: as the caller's.
        unsafe { Self::mul(Self::load_e4m3_small(from), Self::splat(256.0)) }
    }

    /// 32 bf16: two neighbours (along K) per lane.
    type Pairs: Copy;
    unsafe fn load_pairs(from: *const u16) -> Self::Pairs;
    /// The first of each two, widened.
    unsafe fn even(w: Self::Pairs) -> Self::F32;
    /// The second of each two, widened.
    unsafe fn odd(w: Self::Pairs) -> Self::F32;
    /// [`crate::operations::fma_flushed`] per lane.
    unsafe fn fma_flushed(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The sum of normal numbers or zeros, a denormal one flushed to 0.
    unsafe fn add_flushed(a: Self::F32, b: Self::F32) -> Self::F32;
    /// `sum[lane] + w[2 lane + 1]·a[1] + w[2 lane]·a[0]`, each fused and rounded, a denormal sum flushed to 0. Neither side
    /// holds denormals.
    #[inline(always)]
    unsafe fn dot_pairs(sum: Self::F32, w: Self::Pairs, a: *const u16) -> Self::F32 {
        // SAFETY: as the caller's: the machine has it, the pointer is good for 2 values.
        unsafe {
            let (even, odd) = (Self::splat(bf16_to_f32(*a)), Self::splat(bf16_to_f32(*a.add(1))));
            Self::fma_flushed(even, Self::even(w), Self::fma_flushed(odd, Self::odd(w), sum))
        }
    }

    /// Bytes that four activations take: how [`Lanes::dot_quads`] wants to read them.
    const QUAD_BYTES: usize;
    /// Stores four activations (|a| ≤ 127) as `dot_quads` wants to read them.
    unsafe fn store_quad(to: *mut i8, a: [i8; 4]);
    unsafe fn splat_i32(x: i32) -> Self::I32;
    unsafe fn add_i32(a: Self::I32, b: Self::I32) -> Self::I32;
    unsafe fn sub_i32(a: Self::I32, b: Self::I32) -> Self::I32;
    /// Shifted right by one bit, the sign kept.
    unsafe fn halve(a: Self::I32) -> Self::I32;
    /// Shifted left by 23 bits, read as f32.
    unsafe fn exponent(a: Self::I32) -> Self::F32;
    /// The bits of f32.
    unsafe fn bits(a: Self::F32) -> Self::I32;
    /// Stores 16 integers of 8 bits each.
    unsafe fn store_i8(to: *mut i8, a: Self::I32);
    /// The sum of all lanes.
    unsafe fn sum_i32(a: Self::I32) -> i32;
    /// 64 bytes: four neighbours (along K) per lane.
    type Quads: Copy;
    unsafe fn load_quads(from: *const u8) -> Self::Quads;
    /// 64 weights of 8 bits, kept as 128 + the integer; without the 128 where bytes have a sign.
    #[inline(always)]
    unsafe fn load_weights(from: *const u8) -> Self::Quads {
        // SAFETY: as the caller's.
        unsafe { Self::load_quads(from) }
    }
    /// 64 bytes as two times 64 values: the low, then the high halves of all bytes.
    unsafe fn load_nibbles(from: *const u8) -> [Self::Quads; 2];
    /// `sum[lane] + Σ w[4 lane + i]·a[i]`, i in 0..4, exact: no step of it can saturate. Of bytes without a sign, on
    /// aarch64 with one (`InstructionSet::takes_signs`).
    unsafe fn dot_quads(sum: Self::I32, w: Self::Quads, a: *const i8) -> Self::I32;
    unsafe fn to_f32(x: Self::I32) -> Self::F32;
}

/// Arrays.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Lanes for Plain {
    type F32 = [f32; WIDTH];
    type I32 = [i32; WIDTH];
    type Pairs = [u16; 2 * WIDTH];
    type Quads = [u8; 4 * WIDTH];
    const QUAD_BYTES: usize = 4;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self::F32 {
        [0.0; WIDTH]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F32 {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F32 {
        // SAFETY: the caller's pointer is good for 16 values.
        unsafe { from.cast::<Self::F32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F32 {
        // SAFETY: the caller's pointer is good for 16 values.
        unsafe { from.cast::<[u16; WIDTH]>().read_unaligned() }.map(|bits| f32::from_bits((bits as u32) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::F32 {
        // SAFETY: the caller's pointer is good for 16 values.
        unsafe { from.cast::<[i8; WIDTH]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F32) {
        // SAFETY: the caller's pointer is good for 16 values.
        unsafe { to.cast::<Self::F32>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] += b[i]);
        a
    }
    #[inline(always)]
    unsafe fn sub(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] -= b[i]);
        a
    }
    #[inline(always)]
    unsafe fn mul(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] *= b[i]);
        a
    }
    #[inline(always)]
    unsafe fn div(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] /= b[i]);
        a
    }
    #[inline(always)]
    unsafe fn max(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] = if a[i] > b[i] { a[i] } else { b[i] });
        a
    }
    #[inline(always)]
    unsafe fn min(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] = if a[i] < b[i] { a[i] } else { b[i] });
        a
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F32) -> Self::F32 {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F32) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |largest, &x| if x > largest { x } else { largest })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn fma(a: Self::F32, b: Self::F32, mut c: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| c[i] = a[i].mul_add(b[i], c[i]));
        c
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F32 {
        // SAFETY: the caller's pointer is good for 16 values.
        unsafe { from.cast::<[u16; WIDTH]>().read_unaligned() }.map(f16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Self::Pairs {
        // SAFETY: the caller's pointer is good for 32 values.
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn even(w: Self::Pairs) -> Self::F32 {
        std::array::from_fn(|lane| bf16_to_f32(w[2 * lane]))
    }
    #[inline(always)]
    unsafe fn odd(w: Self::Pairs) -> Self::F32 {
        std::array::from_fn(|lane| bf16_to_f32(w[2 * lane + 1]))
    }
    #[inline(always)]
    unsafe fn fma_flushed(a: Self::F32, b: Self::F32, mut c: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| c[i] = fma_flushed(a[i], b[i], c[i]));
        c
    }
    #[inline(always)]
    unsafe fn add_flushed(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] = flush(a[i] + b[i]));
        a
    }
    #[inline(always)]
    unsafe fn store_quad(to: *mut i8, a: [i8; 4]) {
        // SAFETY: the caller's pointer is good for 4 bytes.
        unsafe { to.cast::<[i8; 4]>().write(a) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I32 {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn add_i32(mut a: Self::I32, b: Self::I32) -> Self::I32 {
        (0..WIDTH).for_each(|i| a[i] = a[i].wrapping_add(b[i]));
        a
    }
    #[inline(always)]
    unsafe fn sub_i32(mut a: Self::I32, b: Self::I32) -> Self::I32 {
        (0..WIDTH).for_each(|i| a[i] = a[i].wrapping_sub(b[i]));
        a
    }
    #[inline(always)]
    unsafe fn halve(a: Self::I32) -> Self::I32 {
        a.map(|x| x >> 1)
    }
    #[inline(always)]
    unsafe fn exponent(a: Self::I32) -> Self::F32 {
        a.map(|x| f32::from_bits((x as u32) << 23))
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F32) -> Self::I32 {
        a.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: Self::I32) {
        // SAFETY: the caller's pointer is good for 16 bytes.
        unsafe { to.cast::<[i8; WIDTH]>().write(a.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn sum_i32(a: Self::I32) -> i32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn load_quads(from: *const u8) -> Self::Quads {
        // SAFETY: the caller's pointer is good for 64 bytes.
        unsafe { from.cast::<Self::Quads>().read() }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> [Self::Quads; 2] {
        // SAFETY: the caller's pointer is good for 64 bytes.
        let bytes = unsafe { from.cast::<Self::Quads>().read() };
        [bytes.map(|byte| byte & 15), bytes.map(|byte| byte >> 4)]
    }
    #[inline(always)]
    unsafe fn dot_quads(mut sum: Self::I32, w: Self::Quads, a: *const i8) -> Self::I32 {
        // SAFETY: the caller's pointer is good for 4 bytes.
        let a = unsafe { a.cast::<[i8; 4]>().read() };
        for (lane, sum) in sum.iter_mut().enumerate() {
            (0..4).for_each(|i| *sum += w[4 * lane + i] as i32 * a[i] as i32);
        }
        sum
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I32) -> Self::F32 {
        x.map(|x| x as f32)
    }
}

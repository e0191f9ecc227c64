//! [`Lanes`] on aarch64: four NEON registers, with and without byte dot products (DotProd).
//!
//! Bytes of weights are taken with their sign here: NEON's dot products want it on both sides.
#![allow(unsafe_code)]
// vector intrinsics
// Iterators over arrays, and closures, are compiled apart from the function that has the instructions.
#![allow(clippy::needless_range_loop)]

use std::arch::aarch64::*;
use std::arch::asm;

use super::bits::BitLanes;
use super::{Lanes, WIDTH};
use crate::operations::UP;

/// NEON, perhaps with byte dot products.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>;

/// An array of what `$body` gives for registers 0, 1, 2 and 3.
macro_rules! four {
    ($i:ident => $body:expr) => {
        [
            {
                const $i: usize = 0;
                $body
            },
            {
                const $i: usize = 1;
                $body
            },
            {
                const $i: usize = 2;
                $body
            },
            {
                const $i: usize = 3;
                $body
            },
        ]
    };
}

/// `sum[i] + Σ w[4 i + j]·a[4 i + j]`, j in 0..4. Without DotProd: products of 16 bits, of which two add up to at most
/// 2 × 128 × 127, within 16 bits.
///
/// # Safety
/// The machine has DotProd if DOT; a ≤ 127 in magnitude.
#[inline(always)]
unsafe fn dot<const DOT: bool>(sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: as the caller's; the instruction (whose intrinsic is not stable) changes its one register alone.
    unsafe {
        if DOT {
            let mut sum = sum;
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b",
                sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
            return sum;
        }
        let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
        vpadalq_s16(sum, vpaddq_s16(low, high))
    }
}

/// [`crate::operations::fma_flushed`] of 4 lanes.
///
/// # Safety
/// None: NEON is part of aarch64.
#[inline(always)]
unsafe fn fma_flushed4(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        let least = vdupq_n_f32(f32::MIN_POSITIVE);
        let result = vfmaq_f32(c, a, b);
        let magnitude = vabsq_f32(result);
        let small = vandq_u32(vcgtq_f32(magnitude, vdupq_n_f32(0.0)), vcleq_f32(magnitude, least));
        if vmaxvq_u32(small) == 0 {
            return result;
        }
        let (up, twice) = (vdupq_n_f32(UP), vdupq_n_f32(UP * UP));
        let scaled = vfmaq_f32(vmulq_f32(c, twice), vmulq_f32(a, up), vmulq_f32(b, up));
        let tiny = vandq_u32(small, vcltq_f32(vabsq_f32(scaled), vmulq_f32(least, twice)));
        flushed(result, tiny)
    }
}

/// Zeros of their sign where `which` says so.
///
/// # Safety
/// None: NEON is part of aarch64.
#[inline(always)]
unsafe fn flushed(x: float32x4_t, which: uint32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        vreinterpretq_f32_u32(vbslq_u32(which, vandq_u32(bits, vdupq_n_u32(1 << 31)), bits))
    }
}

/// 4 bf16 of the low or of the high half, widened.
#[inline(always)]
unsafe fn widened(half: uint16x4_t) -> float32x4_t {
    // SAFETY: NEON is part of aarch64.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(half)) }
}

// SAFETY of every block below: NEON is part of aarch64, DotProd the caller's promise, as is that pointers are good for the
// access.
impl<const DOT: bool> Lanes for Neon<DOT> {
    type F32 = [float32x4_t; 4];
    type I32 = [int32x4_t; 4];
    type Pairs = [uint32x4_t; 4];
    type Quads = [uint8x16_t; 4];
    const WIDE: bool = false;
    const QUAD_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self::F32 {
        unsafe { [vdupq_n_f32(0.0); 4] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F32 {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F32 {
        unsafe { four!(I => vld1q_f32(from.add(4 * I))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F32 {
        unsafe { four!(I => widened(vld1_u16(from.add(4 * I)))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::F32 {
        unsafe { Self::to_f32(Self::load_small(from)) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F32) {
        unsafe { _ = four!(I => vst1q_f32(to.add(4 * I), x[I])) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { four!(I => vaddq_f32(a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { four!(I => vsubq_f32(a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { four!(I => vmulq_f32(a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { four!(I => vdivq_f32(a[I], b[I])) }
    }
    // By comparison: of two zeros the second, as everywhere else.
    #[inline(always)]
    unsafe fn max(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { four!(I => vbslq_f32(vcgtq_f32(a[I], b[I]), a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe { four!(I => vbslq_f32(vcltq_f32(a[I], b[I]), a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F32) -> Self::F32 {
        unsafe { four!(I => vabsq_f32(a[I])) }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F32) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        unsafe { four!(I => vfmaq_f32(c[I], a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F32 {
        /// `FCVTL`, whose intrinsic is not stable: exact, denormals too.
        #[inline(always)]
        unsafe fn widened(half: uint16x4_t) -> float32x4_t {
            // SAFETY: the instruction changes its one register alone.
            unsafe {
                let wide: float32x4_t;
                asm!(
                    "fcvtl {wide:v}.4s, {half:v}.4h", wide = lateout(vreg) wide, half = in(vreg) half,
                    options(pure, nomem, nostack, preserves_flags)
                );
                wide
            }
        }
        unsafe { four!(I => widened(vld1_u16(from.add(4 * I)))) }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Self::Pairs {
        unsafe { four!(I => vreinterpretq_u32_u16(vld1q_u16(from.add(8 * I)))) }
    }
    #[inline(always)]
    unsafe fn even(w: Self::Pairs) -> Self::F32 {
        unsafe { four!(I => vreinterpretq_f32_u32(vshlq_n_u32::<16>(w[I]))) }
    }
    #[inline(always)]
    unsafe fn odd(w: Self::Pairs) -> Self::F32 {
        unsafe { four!(I => vreinterpretq_f32_u32(vandq_u32(w[I], vdupq_n_u32(0xffff_0000)))) }
    }
    #[inline(always)]
    unsafe fn fma_flushed(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        unsafe { four!(I => fma_flushed4(a[I], b[I], c[I])) }
    }
    #[inline(always)]
    unsafe fn add_flushed(a: Self::F32, b: Self::F32) -> Self::F32 {
        unsafe {
            let (sum, least) = (Self::add(a, b), vdupq_n_f32(f32::MIN_POSITIVE));
            four!(I => flushed(sum[I], vcltq_f32(vabsq_f32(sum[I]), least)))
        }
    }
    #[inline(always)]
    unsafe fn store_quad(to: *mut i8, a: [i8; 4]) {
        unsafe { to.cast::<[i8; 4]>().write(a) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I32 {
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I32, b: Self::I32) -> Self::I32 {
        unsafe { four!(I => vaddq_s32(a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn sub_i32(a: Self::I32, b: Self::I32) -> Self::I32 {
        unsafe { four!(I => vsubq_s32(a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn halve(a: Self::I32) -> Self::I32 {
        unsafe { four!(I => vshrq_n_s32::<1>(a[I])) }
    }
    #[inline(always)]
    unsafe fn exponent(a: Self::I32) -> Self::F32 {
        unsafe { four!(I => vreinterpretq_f32_s32(vshlq_n_s32::<23>(a[I]))) }
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F32) -> Self::I32 {
        unsafe { four!(I => vreinterpretq_s32_f32(a[I])) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: Self::I32) {
        unsafe {
            let low = vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1]));
            let high = vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]));
            vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    unsafe fn sum_i32(a: Self::I32) -> i32 {
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn load_quads(from: *const u8) -> Self::Quads {
        unsafe { four!(I => vld1q_u8(from.add(WIDTH * I))) }
    }
    #[inline(always)]
    unsafe fn load_weights(from: *const u8) -> Self::Quads {
        unsafe { Self::sub_bytes(Self::load_quads(from), 128) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> [Self::Quads; 2] {
        unsafe {
            let bytes = Self::load_quads(from);
            [four!(I => vandq_u8(bytes[I], vdupq_n_u8(15))), four!(I => vshrq_n_u8::<4>(bytes[I]))]
        }
    }
    #[inline(always)]
    unsafe fn dot_quads(sum: Self::I32, w: Self::Quads, a: *const i8) -> Self::I32 {
        unsafe {
            let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned()));
            four!(I => dot::<DOT>(sum[I], vreinterpretq_s8_u8(w[I]), a))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I32) -> Self::F32 {
        unsafe { four!(I => vcvtq_f32_s32(x[I])) }
    }
}

impl<const DOT: bool> BitLanes for Neon<DOT> {
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::F32 {
        unsafe {
            let bytes = vld1q_u8(from);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let words = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            four!(I => vcvtq_f32_u32(words[I]))
        }
    }
    #[inline(always)]
    unsafe fn load_small(from: *const i8) -> Self::I32 {
        unsafe {
            let bytes = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
        }
    }
    #[inline(always)]
    unsafe fn mul_i32(a: Self::I32, b: Self::I32) -> Self::I32 {
        unsafe { four!(I => vmulq_s32(a[I], b[I])) }
    }
    #[inline(always)]
    unsafe fn with_upper(low: Self::Quads, bits: Self::Quads, shift: i32, mask: u8) -> Self::Quads {
        // A negative count shifts to the right.
        unsafe {
            let (count, mask) = (vdupq_n_s8(shift as i8), vdupq_n_u8(mask));
            four!(I => vorrq_u8(low[I], vandq_u8(vshlq_u8(bits[I], count), mask)))
        }
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::Quads, x: u8) -> Self::Quads {
        unsafe { four!(I => vsubq_u8(a[I], vdupq_n_u8(x))) }
    }
    #[inline(always)]
    unsafe fn store_quads(to: *mut u8, a: Self::Quads) {
        unsafe { _ = four!(I => vst1q_u8(to.add(WIDTH * I), a[I])) }
    }
}

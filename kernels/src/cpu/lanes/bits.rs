//! What superblocks ask of [`Lanes`] beside the rest: small integers widened, and integers put together of two parts.
#![allow(unsafe_code)] // vector intrinsics

use super::{Lanes, Plain, WIDTH};

/// As [`Lanes`]: the machine must have the instructions, and pointers must be good for 16 bytes.
pub(crate) trait BitLanes: Lanes {
    /// 16 bytes as f32.
    unsafe fn load_bytes(from: *const u8) -> Self::F32;
    /// 16 bytes with their sign.
    unsafe fn load_small(from: *const i8) -> Self::I32;
    /// Of products below 2³¹.
    unsafe fn mul_i32(a: Self::I32, b: Self::I32) -> Self::I32;
    /// Per byte `low | (bits << shift) & mask`; shifted to the right if `shift` is negative. The bits of `mask` come from
    /// the same byte.
    unsafe fn with_upper(low: Self::Quads, bits: Self::Quads, shift: i32, mask: u8) -> Self::Quads;
    /// `x` taken off every byte, modulo 256.
    unsafe fn sub_bytes(a: Self::Quads, x: u8) -> Self::Quads;
    /// Stores 64 bytes.
    unsafe fn store_quads(to: *mut u8, a: Self::Quads);
}

impl BitLanes for Plain {
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Self::F32 {
        // SAFETY: the caller's pointer is good for 16 bytes.
        unsafe { from.cast::<[u8; WIDTH]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_small(from: *const i8) -> Self::I32 {
        // SAFETY: the caller's pointer is good for 16 bytes.
        unsafe { from.cast::<[i8; WIDTH]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn mul_i32(mut a: Self::I32, b: Self::I32) -> Self::I32 {
        (0..WIDTH).for_each(|i| a[i] = a[i].wrapping_mul(b[i]));
        a
    }
    #[inline(always)]
    unsafe fn with_upper(mut low: Self::Quads, bits: Self::Quads, shift: i32, mask: u8) -> Self::Quads {
        for (low, bits) in low.iter_mut().zip(bits) {
            *low |= (if shift < 0 { bits >> -shift } else { bits << shift }) & mask;
        }
        low
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::Quads, x: u8) -> Self::Quads {
        a.map(|byte| byte.wrapping_sub(x))
    }
    #[inline(always)]
    unsafe fn store_quads(to: *mut u8, a: Self::Quads) {
        // SAFETY: the caller's pointer is good for 64 bytes.
        unsafe { to.cast::<Self::Quads>().write(a) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::{Avx2, Avx512};
    use super::BitLanes;
    use std::arch::x86_64::*;

    // SAFETY of every block below: the trait's callers promise that the machine has the instructions and that the
    // pointers are good for the access.
    impl<const VNNI: bool, const BF16: bool> BitLanes for Avx512<VNNI, BF16> {
        #[inline(always)]
        unsafe fn load_bytes(from: *const u8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_small(from: *const i8) -> __m512i {
            unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn mul_i32(a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_mullo_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn with_upper(low: __m512i, bits: __m512i, shift: i32, mask: u8) -> __m512i {
            unsafe {
                let count = _mm_cvtsi32_si128(shift.abs());
                let moved = if shift < 0 { _mm512_srl_epi16(bits, count) } else { _mm512_sll_epi16(bits, count) };
                _mm512_or_si512(low, _mm512_and_si512(moved, _mm512_set1_epi8(mask as i8)))
            }
        }
        #[inline(always)]
        unsafe fn sub_bytes(a: __m512i, x: u8) -> __m512i {
            unsafe { _mm512_sub_epi8(a, _mm512_set1_epi8(x as i8)) }
        }
        #[inline(always)]
        unsafe fn store_quads(to: *mut u8, a: __m512i) {
            unsafe { _mm512_storeu_si512(to.cast(), a) }
        }
    }

    impl<const VNNI: bool> BitLanes for Avx2<VNNI> {
        #[inline(always)]
        unsafe fn load_bytes(from: *const u8) -> [__m256; 2] {
            unsafe {
                let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
                let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()));
                [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
            }
        }
        #[inline(always)]
        unsafe fn load_small(from: *const i8) -> [__m256i; 2] {
            unsafe {
                let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
                [low, _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()))]
            }
        }
        #[inline(always)]
        unsafe fn mul_i32(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
            unsafe { [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn with_upper(low: [__m256i; 2], bits: [__m256i; 2], shift: i32, mask: u8) -> [__m256i; 2] {
            unsafe {
                let (count, mask) = (_mm_cvtsi32_si128(shift.abs()), _mm256_set1_epi8(mask as i8));
                let mut together = low;
                for i in 0..2 {
                    let moved =
                        if shift < 0 { _mm256_srl_epi16(bits[i], count) } else { _mm256_sll_epi16(bits[i], count) };
                    together[i] = _mm256_or_si256(low[i], _mm256_and_si256(moved, mask));
                }
                together
            }
        }
        #[inline(always)]
        unsafe fn sub_bytes(a: [__m256i; 2], x: u8) -> [__m256i; 2] {
            unsafe {
                let x = _mm256_set1_epi8(x as i8);
                [_mm256_sub_epi8(a[0], x), _mm256_sub_epi8(a[1], x)]
            }
        }
        #[inline(always)]
        unsafe fn store_quads(to: *mut u8, a: [__m256i; 2]) {
            unsafe {
                _mm256_storeu_si256(to.cast(), a[0]);
                _mm256_storeu_si256(to.add(32).cast(), a[1]);
            }
        }
    }
}

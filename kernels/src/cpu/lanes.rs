//! Sixteen lanes of f32 or i32, per instruction set: the few operations that the hot loops are written in.
//!
//! The loops are generic over [`Lanes`] and compiled once per instruction set (`#[target_feature]` on the outermost
//! function, everything below inlined into it). All implementations are IEEE per lane, so they give the same bits.
//! [`Plain`] is arrays: on aarch64 the compiler turns them into NEON (fused multiply-add is part of the baseline there),
//! on x86-64 without AVX2 it calls the C library's `fmaf`, correct and slow.
#![allow(unsafe_code)] // vector intrinsics

/// Lanes per vector.
pub(crate) const WIDTH: usize = 16;

/// One instruction set. All methods are unsafe: the machine must have it, and pointers must be good for the access.
pub(crate) trait Lanes: Copy {
    type F32: Copy;
    type I32: Copy;

    unsafe fn zero() -> Self::F32;
    unsafe fn splat(x: f32) -> Self::F32;
    /// 16 f32; any alignment.
    unsafe fn load(from: *const f32) -> Self::F32;
    /// 16 bf16, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::F32;
    unsafe fn store(to: *mut f32, x: Self::F32);
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
    /// a·b + c, rounded once.
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    unsafe fn zero_i32() -> Self::I32;
    /// 32 signed bytes: two neighbours per lane.
    type Pairs: Copy;
    unsafe fn load_pairs(from: *const i8) -> Self::Pairs;
    /// `sum[lane] + w[2 lane]·a[0] + w[2 lane + 1]·a[1]`, exact.
    unsafe fn dot_pairs(sum: Self::I32, w: Self::Pairs, a: *const i16) -> Self::I32;
    unsafe fn to_f32(x: Self::I32) -> Self::F32;
}

/// Arrays.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Lanes for Plain {
    type F32 = [f32; WIDTH];
    type I32 = [i32; WIDTH];
    type Pairs = [i8; 2 * WIDTH];

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
    unsafe fn mul(mut a: Self::F32, b: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| a[i] *= b[i]);
        a
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F32, b: Self::F32, mut c: Self::F32) -> Self::F32 {
        (0..WIDTH).for_each(|i| c[i] = a[i].mul_add(b[i], c[i]));
        c
    }
    #[inline(always)]
    unsafe fn zero_i32() -> Self::I32 {
        [0; WIDTH]
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const i8) -> Self::Pairs {
        // SAFETY: the caller's pointer is good for 32 values.
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot_pairs(mut sum: Self::I32, w: Self::Pairs, a: *const i16) -> Self::I32 {
        // SAFETY: the caller's pointer is good for 2 values.
        let (a0, a1) = unsafe { (*a as i32, *a.add(1) as i32) };
        (0..WIDTH).for_each(|i| sum[i] += w[2 * i] as i32 * a0 + w[2 * i + 1] as i32 * a1);
        sum
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I32) -> Self::F32 {
        x.map(|x| x as f32)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// AVX-512 F, BW, DQ, VL: one register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    // SAFETY of every block below: the trait's callers promise that the machine has the instructions and that the
    // pointers are good for the access.
    impl Lanes for Avx512 {
        type F32 = __m512;
        type I32 = __m512i;
        type Pairs = __m512i;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> __m512 {
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: __m512) {
            unsafe { _mm512_storeu_ps(to, x) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn zero_i32() -> __m512i {
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn load_pairs(from: *const i8) -> __m512i {
            unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn dot_pairs(sum: __m512i, w: __m512i, a: *const i16) -> __m512i {
            unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned()))) }
        }
        #[inline(always)]
        unsafe fn to_f32(x: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(x) }
        }
    }

    /// AVX2 and FMA: two registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    impl Lanes for Avx2 {
        type F32 = [__m256; 2];
        type I32 = [__m256i; 2];
        type Pairs = [__m256i; 2];

        #[inline(always)]
        unsafe fn zero() -> [__m256; 2] {
            unsafe { [_mm256_setzero_ps(), _mm256_setzero_ps()] }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> [__m256; 2] {
            unsafe { [_mm256_set1_ps(x), _mm256_set1_ps(x)] }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> [__m256; 2] {
            unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> [__m256; 2] {
            unsafe {
                let widen = |from: *const u16| {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                };
                [widen(from), widen(from.add(8))]
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, x: [__m256; 2]) {
            unsafe {
                _mm256_storeu_ps(to, x[0]);
                _mm256_storeu_ps(to.add(8), x[1]);
            }
        }
        #[inline(always)]
        unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn zero_i32() -> [__m256i; 2] {
            unsafe { [_mm256_setzero_si256(), _mm256_setzero_si256()] }
        }
        #[inline(always)]
        unsafe fn load_pairs(from: *const i8) -> [__m256i; 2] {
            unsafe {
                let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
                [low, _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(16).cast()))]
            }
        }
        #[inline(always)]
        unsafe fn dot_pairs(sum: [__m256i; 2], w: [__m256i; 2], a: *const i16) -> [__m256i; 2] {
            // `madd` of 16-bit pairs: at most 2 × 127² in i32, it cannot saturate (`maddubs` could).
            unsafe {
                let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
                let products = [_mm256_madd_epi16(w[0], a), _mm256_madd_epi16(w[1], a)];
                [_mm256_add_epi32(sum[0], products[0]), _mm256_add_epi32(sum[1], products[1])]
            }
        }
        #[inline(always)]
        unsafe fn to_f32(x: [__m256i; 2]) -> [__m256; 2] {
            unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
        }
    }
}

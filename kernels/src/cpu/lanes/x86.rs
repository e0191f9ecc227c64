//! [`Lanes`] on x86-64: AVX-512 and AVX2, each with and without byte dot products (VNNI).
#![allow(unsafe_code)] // vector intrinsics

use super::Lanes;
use crate::operations::UP;
use std::arch::x86_64::*;

/// Four activations: bytes for the byte dot products, else 16-bit values, even ones first.
///
/// # Safety
/// `to` is good for 4 bytes (with VNNI) or 8.
#[inline(always)]
unsafe fn store_quad<const VNNI: bool>(to: *mut i8, a: [i8; 4]) {
    // SAFETY: as the caller's.
    unsafe {
        if VNNI {
            to.cast::<[i8; 4]>().write(a);
        } else {
            to.cast::<[i16; 4]>().write_unaligned([a[0], a[2], a[1], a[3]].map(i16::from));
        }
    }
}

/// [`crate::operations::fma_flushed`] of 8 lanes.
#[inline(always)]
unsafe fn fma_flushed256(a: __m256, b: __m256, c: __m256) -> __m256 {
    // SAFETY: called where there is AVX2 and FMA.
    unsafe {
        let (sign, least) = (_mm256_set1_ps(-0.0), _mm256_set1_ps(f32::MIN_POSITIVE));
        let result = _mm256_fmadd_ps(a, b, c);
        let magnitude = _mm256_andnot_ps(sign, result);
        let some = _mm256_cmp_ps::<_CMP_GT_OQ>(magnitude, _mm256_setzero_ps());
        let small = _mm256_and_ps(some, _mm256_cmp_ps::<_CMP_LE_OQ>(magnitude, least));
        if _mm256_movemask_ps(small) == 0 {
            return result;
        }
        let (up, twice) = (_mm256_set1_ps(UP), _mm256_set1_ps(UP * UP));
        let scaled = _mm256_fmadd_ps(_mm256_mul_ps(a, up), _mm256_mul_ps(b, up), _mm256_mul_ps(c, twice));
        let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_andnot_ps(sign, scaled), _mm256_mul_ps(least, twice));
        _mm256_blendv_ps(result, _mm256_and_ps(result, sign), _mm256_and_ps(small, tiny))
    }
}

/// 16 numbers of e4m3 in the places of an f16: a sign is shifted in twice, and taken off once.
#[inline(always)]
unsafe fn halves_of_e4m3(from: *const u8) -> __m256i {
    // SAFETY: called where there is AVX2, with a pointer to 16 bytes.
    unsafe {
        let shifted = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())));
        _mm256_and_si256(shifted, _mm256_set1_epi16(!0x4000))
    }
}

/// AVX-512 F, BW, DQ, VL, perhaps VNNI and BF16: one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool, const BF16: bool>;

// SAFETY of every block below: the trait's callers promise that the machine has the instructions and that the
// pointers are good for the access.
impl<const VNNI: bool, const BF16: bool> Lanes for Avx512<VNNI, BF16> {
    type F32 = __m512;
    type I32 = __m512i;
    type Quads = __m512i;
    const WIDE: bool = true;

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
    unsafe fn load_i8(from: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
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
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn halve(a: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<1>(a) }
    }
    #[inline(always)]
    unsafe fn exponent(a: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(a)) }
    }
    #[inline(always)]
    unsafe fn bits(a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: __m512i) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a)) }
    }
    #[inline(always)]
    unsafe fn sum_i32(a: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_e4m3_small(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(halves_of_e4m3(from)) }
    }
    type Pairs = __m512i;
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: __m512, w: __m512i, a: *const u16) -> __m512 {
        unsafe {
            let a = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
            if BF16 {
                // SAFETY: registers of 512 bits, of which every pattern is a value.
                return _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512i, __m512bh>(w),
                    std::mem::transmute::<__m512i, __m512bh>(a),
                );
            }
            Self::fma_flushed(Self::even(a), Self::even(w), Self::fma_flushed(Self::odd(a), Self::odd(w), sum))
        }
    }
    #[inline(always)]
    unsafe fn even(w: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)) }
    }
    #[inline(always)]
    unsafe fn odd(w: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(-65536))) }
    }
    #[inline(always)]
    unsafe fn fma_flushed(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe {
            let (sign, least) = (_mm512_set1_ps(-0.0), _mm512_set1_ps(f32::MIN_POSITIVE));
            let result = _mm512_fmadd_ps(a, b, c);
            let magnitude = _mm512_andnot_ps(sign, result);
            let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(magnitude, _mm512_setzero_ps());
            let small = _mm512_mask_cmp_ps_mask::<_CMP_LE_OQ>(some, magnitude, least);
            if small == 0 {
                return result;
            }
            let (up, twice) = (_mm512_set1_ps(UP), _mm512_set1_ps(UP * UP));
            let scaled = _mm512_fmadd_ps(_mm512_mul_ps(a, up), _mm512_mul_ps(b, up), _mm512_mul_ps(c, twice));
            let (scaled, least) = (_mm512_andnot_ps(sign, scaled), _mm512_mul_ps(least, twice));
            let tiny = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(small, scaled, least);
            _mm512_mask_and_ps(result, tiny, result, sign)
        }
    }
    #[inline(always)]
    unsafe fn add_flushed(a: __m512, b: __m512) -> __m512 {
        unsafe {
            let (sum, sign) = (_mm512_add_ps(a, b), _mm512_set1_ps(-0.0));
            let least = _mm512_set1_ps(f32::MIN_POSITIVE);
            let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_andnot_ps(sign, sum), least);
            _mm512_mask_and_ps(sum, small, sum, sign)
        }
    }
    const QUAD_BYTES: usize = if VNNI { 4 } else { 8 };
    #[inline(always)]
    unsafe fn store_quad(to: *mut i8, a: [i8; 4]) {
        unsafe { store_quad::<VNNI>(to, a) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_quads(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let (bytes, low) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)]
        }
    }
    #[inline(always)]
    unsafe fn dot_quads(sum: __m512i, w: __m512i, a: *const i8) -> __m512i {
        // Without VNNI: even and odd bytes apart, as 16-bit pairs; `madd` of them cannot saturate (2 × 255 × 127 in i32).
        unsafe {
            let first = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
            if VNNI {
                return _mm512_dpbusd_epi32(sum, w, first);
            }
            let second = _mm512_set1_epi32(a.add(4).cast::<i32>().read_unaligned());
            let even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)), first);
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(w), second);
            _mm512_add_epi32(sum, _mm512_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
}

/// AVX2, FMA and F16C, perhaps AVX-VNNI: two registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type F32 = [__m256; 2];
    type I32 = [__m256i; 2];
    type Quads = [__m256i; 2];
    const WIDE: bool = false;

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
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast())));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> [__m256; 2] {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
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
    unsafe fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn abs(a: [__m256; 2]) -> [__m256; 2] {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
    #[inline(always)]
    unsafe fn largest(a: [__m256; 2]) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn add_i32(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub_i32(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn halve(a: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_srai_epi32::<1>(a[0]), _mm256_srai_epi32::<1>(a[1])] }
    }
    #[inline(always)]
    unsafe fn exponent(a: [__m256i; 2]) -> [__m256; 2] {
        unsafe {
            [_mm256_castsi256_ps(_mm256_slli_epi32::<23>(a[0])), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(a[1]))]
        }
    }
    #[inline(always)]
    unsafe fn bits(a: [__m256; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])] }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, a: [__m256i; 2]) {
        // Packing works within halves of 128 bits: the permutation puts the four quarters in their order again.
        unsafe {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a[0], a[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn sum_i32(a: [__m256i; 2]) -> i32 {
        unsafe {
            let eight = _mm256_add_epi32(a[0], a[1]);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b01>(two)))
        }
    }
    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> [__m256; 2] {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            [low, _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3_small(from: *const u8) -> [__m256; 2] {
        unsafe {
            let halves = halves_of_e4m3(from);
            let high = _mm256_extracti128_si256::<1>(halves);
            [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(high)]
        }
    }
    type Pairs = [__m256i; 2];
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast())] }
    }
    #[inline(always)]
    unsafe fn even(w: [__m256i; 2]) -> [__m256; 2] {
        unsafe {
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[0])), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[1]))]
        }
    }
    #[inline(always)]
    unsafe fn odd(w: [__m256i; 2]) -> [__m256; 2] {
        unsafe {
            let odd = _mm256_set1_epi32(-65536);
            [_mm256_castsi256_ps(_mm256_and_si256(w[0], odd)), _mm256_castsi256_ps(_mm256_and_si256(w[1], odd))]
        }
    }
    #[inline(always)]
    unsafe fn fma_flushed(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [fma_flushed256(a[0], b[0], c[0]), fma_flushed256(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn add_flushed(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe {
            let (sign, least) = (_mm256_set1_ps(-0.0), _mm256_set1_ps(f32::MIN_POSITIVE));
            let mut sum = Self::add(a, b);
            for sum in &mut sum {
                let small = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_andnot_ps(sign, *sum), least);
                *sum = _mm256_blendv_ps(*sum, _mm256_and_ps(*sum, sign), small);
            }
            sum
        }
    }
    const QUAD_BYTES: usize = if VNNI { 4 } else { 8 };
    #[inline(always)]
    unsafe fn store_quad(to: *mut i8, a: [i8; 4]) {
        unsafe { store_quad::<VNNI>(to, a) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_quads(from: *const u8) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> [[__m256i; 2]; 2] {
        unsafe {
            let (bytes, low) = (Self::load_quads(from), _mm256_set1_epi8(15));
            let high = [_mm256_srli_epi16::<4>(bytes[0]), _mm256_srli_epi16::<4>(bytes[1])];
            [
                [_mm256_and_si256(bytes[0], low), _mm256_and_si256(bytes[1], low)],
                [_mm256_and_si256(high[0], low), _mm256_and_si256(high[1], low)],
            ]
        }
    }
    #[inline(always)]
    unsafe fn dot_quads(sum: [__m256i; 2], w: [__m256i; 2], a: *const i8) -> [__m256i; 2] {
        // As with AVX-512 (`maddubs` of bytes could saturate).
        unsafe {
            let first = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let mut sum = sum;
            if VNNI {
                for i in 0..2 {
                    sum[i] = _mm256_dpbusd_avx_epi32(sum[i], w[i], first);
                }
                return sum;
            }
            let second = _mm256_set1_epi32(a.add(4).cast::<i32>().read_unaligned());
            for i in 0..2 {
                let even = _mm256_madd_epi16(_mm256_and_si256(w[i], _mm256_set1_epi16(255)), first);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w[i]), second);
                sum[i] = _mm256_add_epi32(sum[i], _mm256_add_epi32(even, odd));
            }
            sum
        }
    }
    #[inline(always)]
    unsafe fn to_f32(x: [__m256i; 2]) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }
}

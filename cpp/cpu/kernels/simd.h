// One register of floats, as AVX-512 (16 lanes) or AVX2 with FMA (8 lanes) has it.
//
// Every file that includes this is compiled once per instruction set, inside namespace vimrt::cpu::VIMRT_ISA, with
// VIMRT_ISA set to avx512 or avx2. Such files use no templates or inline members of the standard library: the linker
// keeps one copy of each, and might keep the one with AVX-512 instructions for both.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vimrt::cpu::VIMRT_ISA {

#define VIMRT_INLINE [[gnu::always_inline]] static inline

#if defined(__AVX512F__)

using Vec = __m512;
using Mask = __mmask16;
constexpr int kLanes = 16;

VIMRT_INLINE Vec zero() {
    return _mm512_setzero_ps();
}
VIMRT_INLINE Vec set1(float value) {
    return _mm512_set1_ps(value);
}
VIMRT_INLINE Vec load(const float* p) {
    return _mm512_loadu_ps(p);
}
VIMRT_INLINE void store(float* p, Vec a) {
    _mm512_storeu_ps(p, a);
}
// The mask of the first `count` lanes, 0 <= count; more than kLanes counts as all.
VIMRT_INLINE Mask first_lanes(std::int64_t count) {
    return count >= kLanes ? static_cast<Mask>(0xFFFF) : static_cast<Mask>((1U << count) - 1U);
}
// Lanes outside the mask read as zero and touch no memory.
VIMRT_INLINE Vec load(const float* p, Mask mask) {
    return _mm512_maskz_loadu_ps(mask, p);
}
VIMRT_INLINE void store(float* p, Vec a, Mask mask) {
    _mm512_mask_storeu_ps(p, mask, a);
}
VIMRT_INLINE Vec add(Vec a, Vec b) {
    return _mm512_add_ps(a, b);
}
VIMRT_INLINE Vec sub(Vec a, Vec b) {
    return _mm512_sub_ps(a, b);
}
VIMRT_INLINE Vec mul(Vec a, Vec b) {
    return _mm512_mul_ps(a, b);
}
VIMRT_INLINE Vec div(Vec a, Vec b) {
    return _mm512_div_ps(a, b);
}
VIMRT_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
// The larger one; `b` where either is NaN.
VIMRT_INLINE Vec max(Vec a, Vec b) {
    return _mm512_max_ps(a, b);
}
// The larger one; NaN where either is.
VIMRT_INLINE Vec max_or_nan(Vec a, Vec b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
VIMRT_INLINE Vec abs(Vec a) {
    return _mm512_abs_ps(a);
}
VIMRT_INLINE float sum(Vec a) {
    return _mm512_reduce_add_ps(a);
}
// 16 bytes to 16 floats.
VIMRT_INLINE Vec load_bytes(const std::uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// (a0, a1, a2, a3, ...) -> (a1, a0, a3, a2, ...)
VIMRT_INLINE Vec swap_pairs(Vec a) {
    return _mm512_permute_ps(a, 0xB1);
}
// (a0, a1, a2, a3, ...) -> (-a0, a1, -a2, a3, ...)
VIMRT_INLINE Vec negate_even(Vec a) {
    return _mm512_mask_sub_ps(a, 0x5555, zero(), a);
}

#else

using Vec = __m256;
using Mask = __m256i;
constexpr int kLanes = 8;

VIMRT_INLINE Vec zero() {
    return _mm256_setzero_ps();
}
VIMRT_INLINE Vec set1(float value) {
    return _mm256_set1_ps(value);
}
VIMRT_INLINE Vec load(const float* p) {
    return _mm256_loadu_ps(p);
}
VIMRT_INLINE void store(float* p, Vec a) {
    _mm256_storeu_ps(p, a);
}
// The mask of the first `count` lanes, 0 <= count; more than kLanes counts as all.
VIMRT_INLINE Mask first_lanes(std::int64_t count) {
    const int lanes = count >= kLanes ? kLanes : static_cast<int>(count);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// Lanes outside the mask read as zero and touch no memory.
VIMRT_INLINE Vec load(const float* p, Mask mask) {
    return _mm256_maskload_ps(p, mask);
}
VIMRT_INLINE void store(float* p, Vec a, Mask mask) {
    _mm256_maskstore_ps(p, mask, a);
}
VIMRT_INLINE Vec add(Vec a, Vec b) {
    return _mm256_add_ps(a, b);
}
VIMRT_INLINE Vec sub(Vec a, Vec b) {
    return _mm256_sub_ps(a, b);
}
VIMRT_INLINE Vec mul(Vec a, Vec b) {
    return _mm256_mul_ps(a, b);
}
VIMRT_INLINE Vec div(Vec a, Vec b) {
    return _mm256_div_ps(a, b);
}
VIMRT_INLINE Vec fma(Vec a, Vec b, Vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
// The larger one; `b` where either is NaN.
VIMRT_INLINE Vec max(Vec a, Vec b) {
    return _mm256_max_ps(a, b);
}
// The larger one; NaN where either is.
VIMRT_INLINE Vec max_or_nan(Vec a, Vec b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
VIMRT_INLINE Vec abs(Vec a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a);
}
VIMRT_INLINE float sum(Vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// 8 bytes to 8 floats.
VIMRT_INLINE Vec load_bytes(const std::uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// (a0, a1, a2, a3, ...) -> (a1, a0, a3, a2, ...)
VIMRT_INLINE Vec swap_pairs(Vec a) {
    return _mm256_permute_ps(a, 0xB1);
}
// (a0, a1, a2, a3, ...) -> (-a0, a1, -a2, a3, ...)
VIMRT_INLINE Vec negate_even(Vec a) {
    return _mm256_blend_ps(a, sub(zero(), a), 0x55);
}

#endif

}  // namespace vimrt::cpu::VIMRT_ISA

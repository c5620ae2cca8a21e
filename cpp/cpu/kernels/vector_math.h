// 2^x, e^x, SiLU and softplus for a register of floats. Error bounds: docs/cpu-kernels.md.
#pragma once

#include "kernels/simd.h"

namespace vimrt::cpu::VIMRT_ISA {

constexpr float kLog2E = 1.44269504F;

#if defined(__AVX512F__)

// 2^x as 2^floor(x) * 2^(k/16) * 2^r with k from 0 to 15 and 0 <= r < 1/16: a look-up in one register, and
// 1 + r (c1 + r (c2 + r c3)), 5.7e-9 from 2^r. The look-up replaces two steps of the degree-5 polynomial that the usual
// range |r| <= 1/2 needs, and the multiply-add unit is what the scan waits for.
//
// Slow decays have x just below 0, which is r just below 1/16, k = 15: there the polynomial times the last entry meets
// 1 with 2^x's own slope, so that 1 - 2^x, on which the memory of a state depends, has no systematic error.
alignas(64) constexpr float kExp2Table[16] = {
    1.00000000F, 1.04427373F, 1.09050775F, 1.13878858F, 1.18920708F, 1.24185777F, 1.29683959F, 1.35425556F,
    1.41421354F, 1.47682619F, 1.54221082F, 1.61049032F, 1.68179286F, 1.75625217F, 1.83400810F, 1.91520655F,
};

// 2^x from x and its remainder r, to which a caller may add what rounding took off x.
VIMRT_INLINE Vec exp2_from_remainder(Vec x, Vec r) {
    // Adding 1.5 * 2^19 rounded down leaves floor(16 x) in the low bits; the look-up reads the lowest four.
    const Vec shifted = _mm512_add_round_ps(x, set1(1.5F * (1 << 19)), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const Vec power = _mm512_permutexvar_ps(_mm512_castps_si512(shifted), _mm512_load_ps(kExp2Table));
    Vec q = fma(set1(0.056730513F), r, set1(0.24018596F));
    q = mul(fma(q, r, set1(0.69314736F)), r);
    return _mm512_scalef_ps(fma(power, q, power), x);
}

// x - floor(16 x) / 16; 0 where x is infinite.
VIMRT_INLINE Vec exp2_remainder(Vec x) {
    return _mm512_reduce_ps(x, (4 << 4) | _MM_FROUND_TO_NEG_INF);
}

// 2^x for every x: 0 where it underflows, infinity where it overflows, NaN for NaN.
VIMRT_INLINE Vec exp2(Vec x) {
    return exp2_from_remainder(x, exp2_remainder(x));
}
VIMRT_INLINE Vec exp2_nonpositive(Vec x) {
    return exp2(x);
}

// NaN stays NaN, as max and min give their second operand then.
VIMRT_INLINE Vec clamp(Vec x, float low, float high) {
    return _mm512_min_ps(set1(high), _mm512_max_ps(set1(low), x));
}

#else

VIMRT_INLINE Vec clamp(Vec x, float low, float high) {
    return _mm256_min_ps(set1(high), _mm256_max_ps(set1(low), x));
}

// x rounded to the nearest integer n; the low bits of `shifted` hold n.
struct Rounded {
    Vec shifted;
    Vec remainder;  // x - n, from -1/2 to 1/2
};

VIMRT_INLINE Rounded exp2_round(Vec x) {
    const Vec magic = set1(1.5F * (1 << 23));
    const Vec shifted = add(x, magic);
    return {shifted, sub(x, sub(shifted, magic))};
}

// 2^n (1 + r q(r)), q of degree 4, whose minimax error relative to 2^r is 9.1e-8; n goes straight into the exponent.
VIMRT_INLINE Vec exp2_from_rounded(Vec shifted, Vec r) {
    Vec p = fma(set1(0.0013264727F), r, set1(0.009671513F));
    p = fma(p, r, set1(0.055507336F));
    p = fma(p, r, set1(0.24022242F));
    p = fma(p, r, set1(0.693147F));
    p = fma(p, r, set1(1.0F));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

// 2^x for x <= 0: below -126 it stays at 2^-126. NaN for NaN.
VIMRT_INLINE Vec exp2_nonpositive(Vec x) {
    const Rounded n = exp2_round(_mm256_max_ps(set1(-126.0F), x));
    return exp2_from_rounded(n.shifted, n.remainder);
}

// 2^x for every x: 2^-126 where it underflows, infinity where it overflows, NaN for NaN.
VIMRT_INLINE Vec exp2(Vec x) {
    const Rounded n = exp2_round(clamp(x, -126.0F, 128.0F));
    return exp2_from_rounded(n.shifted, n.remainder);
}

#endif

// e^x, with x taken to [-87.3, 88.7], where neither end leaves the normal numbers. x log2(e) is rounded, and what
// rounding took off joins the remainder, so that the relative error does not grow with |x|.
VIMRT_INLINE Vec exp(Vec x) {
    x = clamp(x, -87.3F, 88.7F);
    const Vec y = mul(x, set1(kLog2E));
    const Vec low = fma(x, set1(1.92596303e-8F), fma(x, set1(kLog2E), sub(zero(), y)));
#if defined(__AVX512F__)
    return exp2_from_remainder(y, add(exp2_remainder(y), low));
#else
    const Rounded n = exp2_round(y);
    return exp2_from_rounded(n.shifted, add(n.remainder, low));
#endif
}

// x / (1 + e^-x)
VIMRT_INLINE Vec silu(Vec x) {
    return div(x, add(set1(1.0F), exp(sub(zero(), x))));
}

// log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|, and log(1 + u) = u p(u) on [0, 1], p of degree 8, error 3.1e-8.
VIMRT_INLINE Vec softplus(Vec x) {
    const Vec u = exp(sub(zero(), abs(x)));
    const Vec u2 = mul(u, u);
    const Vec u4 = mul(u2, u2);
    // Estrin's scheme: shorter chains than Horner's.
    const Vec p01 = fma(set1(-0.49999493F), u, set1(0.99999994F));
    const Vec p23 = fma(set1(-0.24842982F), u, set1(0.33319098F));
    const Vec p45 = fma(set1(-0.13663247F), u, set1(0.19106008F));
    const Vec p67 = fma(set1(-0.029505244F), u, set1(0.07822596F));
    const Vec low = fma(p23, u2, p01);
    const Vec high = fma(set1(0.0052326946F), u4, fma(p67, u2, p45));
    return fma(fma(high, u4, low), u, max(zero(), x));
}

}  // namespace vimrt::cpu::VIMRT_ISA

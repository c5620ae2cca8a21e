// Elementwise functions of the model, for fp32 parity: relative errors near 1e-7.
#pragma once

namespace vimrt::cuda {

// 2^x by the special-function unit; relative error below 2^-22, subnormal results become 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The same of x <= 0 on the multipliers, for exponentials that the special-function unit has no time for: x is cut into
// an integer and a rest, by adding a number to which a float's digits just reach; then a polynomial with 2^0 = 1, a
// minimax fit of relative error, 1.0e-4; and its slope at 0, which is what becomes of small time steps, is right to
// 2e-4.
__device__ inline float exp2_by_polynomial(float x) {
    constexpr float shift = 12582912.0F;  // 1.5 * 2^23
    x = fmaxf(x, -126.0F);
    const float integer = x + shift;
    const float rest = x - (integer - shift);
    float p = fmaf(0.05500874F, rest, 0.24221113F);
    p = fmaf(p, rest, 0.69328297F);
    p = fmaf(p, rest, 1.0F);
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(integer) << 23));
}

__device__ inline float exp_fast(float x) {
    return exp2_fast(1.4426950408889634F * x);
}

// x / (1 + e^-x)
__device__ inline float silu(float x) {
    return __fdividef(x, 1.0F + exp_fast(-x));
}

// x / (1 + e^-x) = h + h tanh(h), h = x / 2, for results that are stored in 16 bits: the special-function unit's tanh
// has a relative error of 2^-11 (PTX ISA, "tanh"), a 16-bit rounding's.
__device__ inline float silu_of_half(float h) {
    float tanh;
    asm("tanh.approx.f32 %0, %1;" : "=f"(tanh) : "f"(h));
    return fmaf(h, tanh, h);
}
__device__ inline float silu_for_16_bits(float x) {
    return silu_of_half(0.5F * x);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), where log1p(e) = e p(e) on [0, 1]: a logarithm of 1 + e would lose the
// digits of small time steps. Exact: p of degree 8, relative error 2e-7. Otherwise degree 5, 9e-6, far below the
// rounding of 16-bit storage. The coefficients are a minimax fit of relative error.
template <bool Exact>
__device__ inline float softplus(float x) {
    const float e = exp_fast(-fabsf(x));
    float p;
    if constexpr (Exact) {
        p = fmaf(0.00523262378F, e, -0.0295049567F);
        p = fmaf(p, e, 0.0782254934F);
        p = fmaf(p, e, -0.13663207F);
        p = fmaf(p, e, 0.191059887F);
        p = fmaf(p, e, -0.248429775F);
        p = fmaf(p, e, 0.333190948F);
        p = fmaf(p, e, -0.499994934F);
        p = fmaf(p, e, 0.99999994F);
    } else {
        p = fmaf(-0.023868857F, e, 0.101221547F);
        p = fmaf(p, e, -0.210048035F);
        p = fmaf(p, e, 0.325206459F);
        p = fmaf(p, e, -0.499361336F);
        p = fmaf(p, e, 0.999991596F);
    }
    return fmaf(e, p, fmaxf(x, 0.0F));
}

}  // namespace vimrt::cuda

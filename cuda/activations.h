// Elementwise functions of the model, for fp32 parity: relative errors near 1e-7.
#pragma once

namespace vimrt::cuda {

// 2^x by the special-function unit; relative error below 2^-22, subnormal results become 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float exp_fast(float x) {
    return exp2_fast(1.4426950408889634F * x);
}

// x / (1 + e^-x)
__device__ inline float silu(float x) {
    return __fdividef(x, 1.0F + exp_fast(-x));
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|). With s = e / (2 + e) and e <= 1, log1p(e) = 2 artanh(s), whose series in
// s^2
// <= 1/9 is cut after s^13: a logarithm of 1 + e would lose the small time steps' digits.
__device__ inline float softplus(float x) {
    const float e = exp_fast(-fabsf(x));
    const float s = __fdividef(e, 2.0F + e);
    const float q = s * s;
    float series = 1.0F / 13.0F;
    series = fmaf(series, q, 1.0F / 11.0F);
    series = fmaf(series, q, 1.0F / 9.0F);
    series = fmaf(series, q, 1.0F / 7.0F);
    series = fmaf(series, q, 1.0F / 5.0F);
    series = fmaf(series, q, 1.0F / 3.0F);
    series = fmaf(series, q, 1.0F);
    return fmaxf(x, 0.0F) + 2.0F * s * series;
}

}  // namespace vimrt::cuda

// The depthwise causal convolution over tokens and its SiLU, for a chunk of tokens.
#pragma once

#include "kernels/partition.h"
#include "kernels/vector_math.h"

namespace vimrt::cpu::VIMRT_ISA {

struct ConvWeights {
    const float* taps = nullptr;  // (width, stride): row `width - 1` belongs to the current token
    const float* bias = nullptr;  // (stride)
    std::int64_t width = 0;
    std::int64_t stride = 0;  // channels, padded to whole registers
    bool reversed = false;    // the sequence is read backwards: the tap before the last belongs to the next token
};

// The tokens of one image: x (tokens, channels), rows `stride` floats apart.
struct ConvInput {
    const float* x = nullptr;
    std::int64_t stride = 0;
    std::int64_t tokens = 0;
    std::int64_t channels = 0;
};

// The convolution for one token whose taps [first_tap, width) all lie inside the sequence; kWidth fixes the number of
// taps used, 0 leaves it to `width`.
template <int kWidth>
static inline void conv_token(const ConvWeights& w, const ConvInput& in, std::int64_t token, std::int64_t first_tap,
                              Range channels, float* out) {
    const std::int64_t back = w.width - 1 - first_tap;
    const std::int64_t step = w.reversed ? -in.stride : in.stride;
    const float* oldest = in.x + token * in.stride - back * step;
    const std::int64_t taps = kWidth > 0 ? kWidth : w.width - first_tap;
    for (std::int64_t e = channels.begin; e < channels.end; e += kLanes) {
        const Mask mask = first_lanes(in.channels - e);
        Vec sum = load(w.bias + e);
        for (std::int64_t i = 0; i < taps; ++i) {
            sum = fma(load(oldest + i * step + e, mask), load(w.taps + (first_tap + i) * w.stride + e), sum);
        }
        store(out + e, silu(sum));
    }
}

// c = SiLU(conv(x) + bias) for tokens [tokens.begin, tokens.end) and channels [channels.begin, channels.end), a
// multiple of kLanes wide; channels beyond in.channels become 0. Row i of `out` is token tokens.begin + i.
static inline void causal_conv_silu(const ConvWeights& w, const ConvInput& in, Range tokens, Range channels, float* out,
                                    std::int64_t out_stride) {
    for (std::int64_t token = tokens.begin; token < tokens.end; ++token, out += out_stride) {
        const std::int64_t before = w.reversed ? in.tokens - 1 - token : token;  // tokens that precede this one
        const std::int64_t first_tap = before >= w.width - 1 ? 0 : w.width - 1 - before;
        if (w.width == 4 && first_tap == 0) {
            conv_token<4>(w, in, token, 0, channels, out);
        } else {
            conv_token<0>(w, in, token, first_tap, channels, out);
        }
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA

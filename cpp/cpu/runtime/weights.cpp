#include "runtime/weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

namespace vimrt::cpu {

namespace {

float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000U) << 16;
    const std::uint32_t exponent = (half >> 10) & 0x1FU;
    const std::uint32_t mantissa = half & 0x3FFU;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;  // subnormal
    return sign != 0 ? -magnitude : magnitude;
}

}  // namespace

float weight_element(const Weight& weight, std::int64_t i) {
    if (weight.dtype == DType::F32) {
        float value;
        std::memcpy(&value, static_cast<const char*>(weight.data) + i * 4, 4);
        return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, static_cast<const char*>(weight.data) + i * 2, 2);
    return weight.dtype == DType::BF16 ? std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16)
                                       : half_to_float(bits);
}

namespace {

constexpr std::int64_t registers_per_panel = 3;

std::string key_of(const char* layout, const Weight& weight, int lanes, const Weight* gamma) {
    std::string key = std::string(layout) + std::to_string(lanes) + " " + weight.name;
    if (gamma != nullptr) key += " * " + gamma->name;
    return key;
}

struct PackRequest {
    const Weight* weight;
    const Weight* gamma;
    std::int64_t lanes;
    std::int64_t depth, columns;   // of B
    std::int64_t channels, patch;  // C and P Q where a patch's channels come last; otherwise 1 and K
};

// Column n of B, which is row n of the weight, to every `width`-th float of `out`.
void fill_column(const PackRequest& request, std::int64_t n, float* out, std::int64_t width) {
    const float gamma = request.gamma != nullptr ? weight_element(*request.gamma, n) : 1.0F;
    const std::int64_t row = n * request.depth;
    for (std::int64_t channel = 0; channel < request.channels; ++channel) {
        float* to = out + channel * width;
        for (std::int64_t i = 0; i < request.patch; ++i, to += request.channels * width) {
            *to = weight_element(*request.weight, row + channel * request.patch + i) * gamma;
        }
    }
}

void fill_packed(void* out, const void* context) {
    const auto& request = *static_cast<const PackRequest*>(context);
    auto* panel = static_cast<float*>(out);
    const std::int64_t whole = registers_per_panel * request.lanes;
    for (std::int64_t first = 0; first < request.columns; first += whole) {
        const std::int64_t width = std::min(whole, round_up(request.columns - first, request.lanes));
        std::memset(panel, 0, static_cast<std::size_t>(request.depth * width) * sizeof(float));
        const std::int64_t end = std::min(first + width, request.weight->shape[0]);
        for (std::int64_t n = first; n < end; ++n) fill_column(request, n, panel + (n - first), width);
        panel += request.depth * width;
    }
}

PackedMatrix packed(Lowering& lowering, const std::string& key, const PackRequest& request) {
    const std::int64_t floats = request.depth * round_up(request.columns, request.lanes);
    const void* data =
        lowering.engine_constant(key.c_str(), static_cast<std::size_t>(floats) * sizeof(float), fill_packed, &request);
    return {static_cast<const float*>(data), request.depth, request.columns};
}

struct VectorRequest {
    const Weight* weight;
    const Weight* gamma;
    std::int64_t padded;
};

void fill_vector(void* out, const void* context) {
    const auto& request = *static_cast<const VectorRequest*>(context);
    auto* values = static_cast<float*>(out);
    const std::int64_t count = request.weight->shape.elements();
    for (std::int64_t i = 0; i < request.padded; ++i) {
        values[i] = i < count ? weight_element(*request.weight, i) : 0.0F;
        if (request.gamma != nullptr && i < count) values[i] *= weight_element(*request.gamma, i);
    }
}

void fill_conv_taps(void* out, const void* context) {
    const auto& request = *static_cast<const VectorRequest*>(context);
    const Weight& weight = *request.weight;
    auto* next = static_cast<float*>(out);
    for (std::int64_t tap = 0; tap < weight.shape[2]; ++tap) {
        for (std::int64_t e = 0; e < request.padded; ++e) {
            *next++ = e < weight.shape[0] ? weight_element(weight, e * weight.shape[2] + tap) : 0.0F;
        }
    }
}

struct DecayRequest {
    const Weight* a_log;
    std::int64_t lanes;
};

void fill_decay_rates(void* out, const void* context) {
    const auto& request = *static_cast<const DecayRequest*>(context);
    const std::int64_t channels = request.a_log->shape[0];
    const std::int64_t states = request.a_log->shape[1];
    constexpr double log2_e = 1.4426950408889634;
    auto* next = static_cast<float*>(out);
    for (std::int64_t first = 0; first < channels; first += request.lanes) {
        for (std::int64_t n = 0; n < states; ++n) {
            for (std::int64_t e = first; e < first + request.lanes; ++e) {
                *next++ =
                    e < channels
                        ? static_cast<float>(-std::exp(double{weight_element(*request.a_log, e * states + n)}) * log2_e)
                        : 0.0F;
            }
        }
    }
}

}  // namespace

PackedMatrix packed_linear(Lowering& lowering, const Weight& weight, int lanes, const Weight* gamma) {
    return packed(lowering, key_of("panels of ", weight, lanes, gamma),
                  {&weight, gamma, lanes, weight.shape[1], weight.shape[0], 1, weight.shape[1]});
}

PackedMatrix packed_linear_padded(Lowering& lowering, const Weight& weight, int lanes) {
    return packed(lowering, key_of("padded panels of ", weight, lanes, nullptr),
                  {&weight, nullptr, lanes, weight.shape[1], round_up(weight.shape[0], lanes), 1, weight.shape[1]});
}

PackedMatrix packed_patches(Lowering& lowering, const Weight& weight, int lanes, bool channels_last) {
    const std::int64_t patch = weight.shape[2] * weight.shape[3];
    const std::int64_t depth = weight.shape[1] * patch;
    PackRequest request{&weight, nullptr, lanes, depth, weight.shape[0], 1, depth};
    if (channels_last) {
        request.channels = weight.shape[1];
        request.patch = patch;
    }
    return packed(lowering, key_of(channels_last ? "channels-last patches of " : "patches of ", weight, lanes, nullptr),
                  request);
}

const float* float_vector(Lowering& lowering, const Weight& weight, int lanes, const Weight* gamma) {
    const VectorRequest request{&weight, gamma, round_up(weight.shape.elements(), lanes)};
    return static_cast<const float*>(lowering.engine_constant(key_of("vector of ", weight, lanes, gamma).c_str(),
                                                              static_cast<std::size_t>(request.padded) * sizeof(float),
                                                              fill_vector, &request));
}

const float* conv_taps(Lowering& lowering, const Weight& weight, int lanes) {
    const VectorRequest request{&weight, nullptr, round_up(weight.shape[0], lanes)};
    return static_cast<const float*>(lowering.engine_constant(
        key_of("taps of ", weight, lanes, nullptr).c_str(),
        static_cast<std::size_t>(request.padded * weight.shape[2]) * sizeof(float), fill_conv_taps, &request));
}

const float* decay_rates(Lowering& lowering, const Weight& a_log, int lanes) {
    const DecayRequest request{&a_log, lanes};
    const std::int64_t floats = round_up(a_log.shape[0], lanes) * a_log.shape[1];
    return static_cast<const float*>(lowering.engine_constant(key_of("decay rates of ", a_log, lanes, nullptr).c_str(),
                                                              static_cast<std::size_t>(floats) * sizeof(float),
                                                              fill_decay_rates, &request));
}

}  // namespace vimrt::cpu

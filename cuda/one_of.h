// Which of a kernel's instances takes what is known at run time alone.
#pragma once

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace vimrt::cuda {

// Calls function.operator()<value>() with the one of the array `Values` that equals `value`.
template <const auto& Values, typename Value, typename F>
void with_one_of(const Value& value, const F& function) {
    const auto call_if = [&]<std::size_t I>() {
        constexpr Value one = Values[I];
        if (one != value) return false;
        function.template operator()<one>();
        return true;
    };
    const auto call_one = [&]<std::size_t... I>(std::index_sequence<I...>) {
        return (call_if.template operator()<I>() || ...);
    };
    if (!call_one(std::make_index_sequence<std::size(Values)>()))
        throw std::logic_error("no instance of the kernel takes this");
}

}  // namespace vimrt::cuda

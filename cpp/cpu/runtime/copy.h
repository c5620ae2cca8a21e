// Copies of matrices with strided rows.
#pragma once

#include "lowering.h"

namespace vimrt::cpu {

// Emits a step that copies rows x columns floats.
void lower_copy(Lowering& lowering, const Operand& source, const Operand& destination, std::int64_t rows,
                std::int64_t columns);

}  // namespace vimrt::cpu

// cuda/cublaslt_api.h against cublasLt.h itself. Nothing runs: it compiles or it does not.
#include "cublaslt_api.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include <cstddef>

namespace {

using namespace vimrt::cuda;

static_assert(static_cast<long>(lt::success) == static_cast<long>(CUBLAS_STATUS_SUCCESS));
static_assert(static_cast<long>(lt::layout_batch_count) == static_cast<long>(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT));
static_assert(static_cast<long>(lt::layout_batch_stride) ==
              static_cast<long>(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET));
static_assert(static_cast<long>(lt::desc_transpose_a) == static_cast<long>(CUBLASLT_MATMUL_DESC_TRANSA));
static_assert(static_cast<long>(lt::desc_epilogue) == static_cast<long>(CUBLASLT_MATMUL_DESC_EPILOGUE));
static_assert(static_cast<long>(lt::desc_bias_pointer) == static_cast<long>(CUBLASLT_MATMUL_DESC_BIAS_POINTER));
static_assert(static_cast<long>(lt::preference_max_workspace_bytes) ==
              static_cast<long>(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES));
static_assert(static_cast<long>(lt::preference_reduction_schemes) ==
              static_cast<long>(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK));
static_assert(static_cast<long>(lt::preference_alignment_b) ==
              static_cast<long>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES));
static_assert(static_cast<long>(lt::preference_alignment_c) ==
              static_cast<long>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES));
static_assert(static_cast<long>(lt::preference_alignment_d) ==
              static_cast<long>(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES));
static_assert(static_cast<long>(lt::transpose) == static_cast<long>(CUBLAS_OP_T));
static_assert(static_cast<long>(lt::epilogue_bias) == static_cast<long>(CUBLASLT_EPILOGUE_BIAS));
static_assert(static_cast<long>(lt::reduction_in_compute_type) ==
              static_cast<long>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
static_assert(static_cast<long>(lt::reduction_in_output_type) ==
              static_cast<long>(CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE));
static_assert(static_cast<long>(lt::compute_fp32) == static_cast<long>(CUBLAS_COMPUTE_32F));
static_assert(sizeof(lt::Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(lt::HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(lt::HeuristicResult, workspace_bytes) ==
              offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(lt::HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(sizeof(cublasStatus_t) == sizeof(lt::Status));
static_assert(sizeof(cublasLtMatmulDescAttributes_t) == sizeof(lt::DescAttribute));

}  // namespace
#endif

int main() {}

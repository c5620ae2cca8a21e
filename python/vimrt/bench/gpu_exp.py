"""How many exponentials a GPU computes by the second: a kernel of nothing but ex2.approx. Needs Triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

# 8 independent chains to each of 256 threads hide the unit's latency; 32 blocks of them fill every multiprocessor more
# than once over.
_BLOCK, _WARPS, _BLOCKS_PER_MULTIPROCESSOR, _LENGTH = 2048, 8, 32, 512


@triton.jit  # type: ignore[untyped-decorator]
def _exp_kernel(data, length, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = data + tl.program_id(0) * block + tl.arange(0, block)
    x = tl.load(at)
    for _step in range(length):
        # 2^-x: the sign costs nothing, and from any start x settles at 0.641 instead of overflowing.
        x = tl.inline_asm_elementwise(
            "{ .reg .f32 t; neg.f32 t, $1; ex2.approx.ftz.f32 $0, t; }",
            "=f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    tl.store(at, x)


def exp_rate(median_seconds: Callable[[Callable[[], object]], float]) -> float:
    """Exponentials by the second on the current device; `median_seconds` times a function.

    Raises:
        RuntimeError: the kernel computed something else.
    """
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    blocks = _BLOCKS_PER_MULTIPROCESSOR * properties.multi_processor_count
    data = torch.rand(blocks * _BLOCK, device="cuda")

    def run() -> None:
        _exp_kernel[(blocks,)](data, _LENGTH, block=_BLOCK, num_warps=_WARPS)

    seconds = median_seconds(run)
    if not torch.allclose(data, torch.full_like(data, 0.6411857), atol=1e-4):
        raise RuntimeError("the kernel that measures exponentials computed something else")
    return blocks * _BLOCK * _LENGTH / seconds

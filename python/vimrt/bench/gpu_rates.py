"""What a GPU does by the second when it does nothing else: exponentials, matrix products, copies. Needs PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from .nvml import open_card

_REPETITIONS = 20
# The special-function units' results for each clock cycle and multiprocessor, compute capability 7.5 to 12.x
# (CUDA C++ Programming Guide, "Arithmetic Instructions").
_EXP_PER_CYCLE = 16


def gpu_rates(index: int) -> dict[str, Any]:
    """Rates of the card `index`.

    Returns:
        "exp_per_second": of ex2.approx in fp32; "exp_source" says whether that was measured, which takes Triton, or
        counted from the card's units and highest clock. "matmul_flops_per_second": fp16, 8192 squared.
        "copy_bytes_per_second": read and written together, within device memory.
    """
    with torch.cuda.device(index):
        exp, source = _exp_rate(index)
        return {
            "exp_per_second": exp,
            "exp_source": source,
            "matmul_flops_per_second": _matmul_rate(),
            "copy_bytes_per_second": _copy_rate(),
        }


def _median_seconds(function: Callable[[], object]) -> float:
    times: list[float] = []
    for i in range(_REPETITIONS + 5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(1e-3 * begin.elapsed_time(end))
    return statistics.median(times)


def _matmul_rate(side: int = 8192) -> float:
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(a)
    flops = 2.0 * side**3
    return flops / _median_seconds(lambda: torch.mm(a, b, out=out))


def _copy_rate(size: int = 2**30) -> float:
    source = torch.randint(0, 256, (size,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source))


def _exp_rate(index: int) -> tuple[float, str]:
    try:
        from .gpu_exp import exp_rate
    except ImportError:
        card = open_card(index)
        if card is None:
            raise RuntimeError("the rate of exponentials needs Triton (pip install triton) or NVML") from None
        per_cycle = _EXP_PER_CYCLE * torch.cuda.get_device_properties(index).multi_processor_count
        return 1e6 * per_cycle * card.max_clocks()[0], "counted from the card's units and highest clock"
    return exp_rate(_median_seconds), "measured"

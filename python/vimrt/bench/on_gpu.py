"""One image size and batch on a GPU: vimrt and DeiT by turns, input and output on the card, by CUDA events."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..engine import Engine
from .deit_gpu import DTYPES, Best, best_deit_on_gpu
from .gpu_clocks import ClockSampler
from .gpu_timing import interleave_on_gpu
from .nvml import open_card
from .peers import deit_size
from .report import Case, ImageSize, Measured, Progress, Settings
from .work import work_of

_MIN_CALLS = 50


def measure(
    settings: Settings,
    load: Callable[[], Engine],
    index: int,
    image_size: ImageSize,
    batch: int,
    rates: Mapping[str, Any],
    progress: Progress,
) -> Case:
    """Measures `batch` images of rows and columns `image_size` on the card `index`.

    `load` makes a new engine, whose arena is this case's.
    """
    if settings.resident:
        raise ValueError("resident memory is the CPU's; on a GPU the driver's count is always told")
    if "vim" in settings.peers:
        raise ValueError("Vim in plain PyTorch runs on the CPU; compare with deit, or give device cpu")
    place = f"{image_size[0]}x{image_size[1]}, batch {batch}"
    torch.cuda.empty_cache()  # what PyTorch keeps of the case before
    with torch.cuda.device(index), ClockSampler(open_card(index)) as clocks:
        stream = torch.cuda.Stream()
        progress(f"{place}: preparing vimrt")
        own = GpuRun(load, image_size, batch, stream)
        functions: dict[str, Callable[[], object]] = {"vimrt": own.run}
        best: Best | None = None
        if "deit" in settings.peers:
            best = _deit(settings, own.engine, image_size, batch, stream, lambda text: progress(f"{place}: {text}"))
            functions["deit"] = best.form.run
        progress(f"{place}: timing {', '.join(functions)}")
        begin = time.monotonic()
        calls = max(settings.rounds, _MIN_CALLS)
        timings = interleave_on_gpu(functions, stream, calls, budget_seconds=settings.budget_seconds)
        sampled = clocks.between(begin, time.monotonic())
        own.check()
    engine = own.engine
    runtimes = {"vimrt": Measured(timings["vimrt"], engine.memory["activations"], engine.backend, own.driver_bytes)}
    if best is not None:
        variant = f"{best.form.name}, {best.model}"
        runtimes["deit"] = Measured(
            timings["deit"], best.form.peak_bytes, variant, best.form.driver_bytes, dict(best.forms)
        )
    program = engine.program(batch, image_size)
    work = work_of(engine.info, batch, image_size)
    floor = work.floor_seconds(rates["exp_per_second"], rates["matmul_flops_per_second"])
    lower_bound = program["lower_bound"]
    return Case(image_size, batch, work, floor, runtimes, program["peak"], lower_bound, clocks=sampled)


class GpuRun:
    """vimrt on pixels that lie on the card, into logits that do.

    Attributes:
        engine: loaded for this alone.
        driver_bytes: by how much the driver's free memory shrank over the first run, without what was spent on
            constants: the arena, and the run's own CUDA graph.
    """

    def __init__(
        self, load: Callable[[], Engine], image_size: ImageSize, batch: int, stream: torch.cuda.Stream
    ) -> None:
        self._stream = stream
        self._pixels = torch.randn(batch, 3, *image_size, device="cuda")
        torch.cuda.synchronize()
        # An engine before this one makes the driver load the kernels, whose code would count as activations.
        self._logits = self._first_logits(load())
        gc.collect()
        self.engine = load()
        self.engine.program(batch, image_size)
        constants = self.engine.memory["constants"]
        before = _free_bytes()
        self.run()
        self.driver_bytes = before - _free_bytes() - (self.engine.memory["constants"] - constants)
        self._expected = self._logits.clone()

    def _first_logits(self, engine: Engine) -> Tensor:
        run: Any = engine.run
        logits = from_dlpack(run(self._pixels)).clone()
        torch.cuda.synchronize()
        return logits

    def run(self) -> None:
        """Enqueues one run."""
        run: Any = self.engine.run
        run(self._pixels, out=self._logits, stream=self._stream.cuda_stream)

    def check(self) -> None:
        """Raises RuntimeError unless the logits are finite, not all alike, and still those of the first run."""
        torch.cuda.synchronize()
        if not (self._logits.isfinite().all() and self._logits.std() > 0):
            raise RuntimeError("vimrt's logits are not finite, or all alike")
        if not torch.equal(self._logits, self._expected):
            raise RuntimeError("vimrt's logits changed from run to run")


def _free_bytes() -> int:
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def _deit(
    settings: Settings,
    engine: Engine,
    image_size: ImageSize,
    batch: int,
    stream: torch.cuda.Stream,
    progress: Progress,
) -> Best:
    if engine.dtype not in DTYPES:
        raise ValueError(f"DeiT's attention kernels take fp16 and bf16, and the engine runs in {engine.dtype}")
    return best_deit_on_gpu(
        deit_size(engine.info),
        image_size,
        batch,
        stream,
        dtype=DTYPES[engine.dtype],
        compiled=settings.compiled,
        compile_seconds=settings.compile_seconds,
        progress=progress,
    )

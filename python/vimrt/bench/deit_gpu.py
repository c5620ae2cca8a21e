"""DeiT at its best in PyTorch on a GPU: the opponent that vimrt's timings on a GPU are compared with.

The model is timm's where timm is installed, else the equal one of vimrt.bench.deit. It runs in half precision, in
inference mode, with scaled_dot_product_attention, replayed from a CUDA graph; tried are cuDNN's attention kernels and
the flash kernels, and the better of the two once more through torch.compile with max-autotune. The fastest counts.

    python -m vimrt.bench.deit_gpu --size tiny --image-size 1248 --batch 8 --json
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import deit
from .gpu_timing import interleave_on_gpu

ATTENTION = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
COMPILE_MODE = "max-autotune-no-cudagraphs"

# Two ways to run half precision through 12 blocks differ by about a thousandth; a wrong one differs by about 1.
_AGREEMENT = 2e-2
_WARM_UP_CALLS = 3
_TUNING_CALLS = 20


class CompileTimeout(BaseException):
    """torch.compile took longer than allowed. No Exception, because torch.compile turns those into its own."""


@dataclass(frozen=True)
class Pass:
    """A way of running, not captured yet: `function` gives logits for `pixels`, `attention` is one of ATTENTION."""

    name: str
    function: Callable[[Tensor], Tensor]
    pixels: Tensor
    attention: str


@dataclass(frozen=True)
class Form:
    """One way to run DeiT, captured in a CUDA graph.

    Attributes:
        name: such as "graph, cuDNN".
        run: replays the graph; the logits are then in `logits`.
        peak_bytes: the most that one pass holds in PyTorch's tensors beyond weights, input and what was held before,
            by torch.cuda.max_memory_allocated, before the capture.
        driver_bytes: by how much the driver's free memory shrank over the capture: the graph's private memory pool, in
            PyTorch's segments, and the graph itself.
    """

    name: str
    run: Callable[[], object]
    logits: Tensor
    peak_bytes: int
    driver_bytes: int


@dataclass(frozen=True)
class Best:
    """The fastest form, and what is known of all: seconds, bytes, or why one is left out."""

    form: Form
    model: str
    forms: dict[str, Any] = field(default_factory=dict)


def make_model(size: str, image_size: tuple[int, int]) -> tuple[nn.Module, str]:
    """DeiT of `size` "tiny", "small" or "base" for images of rows and columns `image_size`, and whose it is."""
    try:
        import timm
    except ImportError:
        return deit.DeiT(deit.SIZES[size], image_size).eval(), "vimrt.bench.deit"
    model: nn.Module = timm.create_model(f"deit_{size}_patch16_224", img_size=image_size)
    return model.eval(), f"timm {timm.__version__}"


def best_deit_on_gpu(
    size: str,
    image_size: tuple[int, int],
    batch: int,
    stream: torch.cuda.Stream,
    *,
    dtype: torch.dtype = torch.float16,
    compiled: bool = True,
    compile_seconds: float = 180.0,
    progress: Callable[[str], None] = lambda text: None,
) -> Best:
    """The fastest way to run DeiT on the current device, ready to be replayed on `stream`.

    A compilation that takes longer than `compile_seconds` is given up, and said so in `forms`.

    Raises:
        RuntimeError: no way of running it works, or one computes something else than the others.
    """
    with torch.device("cuda"):
        torch.manual_seed(0)
        model, source = make_model(size, image_size)
        model = model.to(dtype).requires_grad_(False)
        pixels = torch.randn(batch, 3, *image_size, dtype=dtype)
    ready: list[Form] = []
    known: dict[str, Any] = {}
    for attention in ATTENTION:
        name = f"graph, {attention}"
        progress(f"DeiT: {name}")
        _try_form(Pass(name, model, pixels, attention), stream, ready, known)
    if not ready:
        raise RuntimeError(f"DeiT-{size} cannot run at {image_size} with batch {batch}: {known}")
    seconds = _tune(ready, stream)
    if compiled:
        attention = min(seconds, key=lambda name: seconds[name]).partition(", ")[2]
        name = f"torch.compile + graph, {attention}"
        progress(f"DeiT: {name}")
        torch.compiler.reset()  # past its limit of compilations per function, torch.compile runs eagerly without a word
        fast = torch.compile(model, mode=COMPILE_MODE, dynamic=False)
        with time_limit(compile_seconds):
            _try_form(Pass(name, fast, pixels, attention), stream, ready, known)
        seconds = _tune(ready, stream)
    _check_agreement(ready)
    for form in ready:
        known[form.name] = {
            "seconds": seconds[form.name],
            "peak_bytes": form.peak_bytes,
            "driver_bytes": form.driver_bytes,
        }
    fastest = min(ready, key=lambda form: seconds[form.name])
    return Best(fastest, source, known)


def _try_form(given: Pass, stream: torch.cuda.Stream, ready: list[Form], known: dict[str, Any]) -> None:
    """A way of running that this version of PyTorch or this card does not have is left out, with its reason."""
    try:
        ready.append(_capture(given, stream))
    except (RuntimeError, CompileTimeout) as error:
        torch.cuda.synchronize()
        known[given.name] = {"left_out": next(iter(str(error).strip().splitlines()), type(error).__name__)}


def _tune(forms: Sequence[Form], stream: torch.cuda.Stream) -> dict[str, float]:
    runs = {form.name: form.run for form in forms}
    timings = interleave_on_gpu(runs, stream, _TUNING_CALLS, budget_seconds=10, min_seconds=0.2)
    return {name: timing.median for name, timing in timings.items()}


def _capture(given: Pass, stream: torch.cuda.Stream) -> Form:
    """Runs `given` as it is, then captures it, and holds the graph's logits to those before."""
    function, pixels = given.function, given.pixels
    with sdpa_kernel(ATTENTION[given.attention]), torch.inference_mode(), torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.default_stream())
        for _ in range(_WARM_UP_CALLS):
            expected = function(pixels)
        expected = expected.clone()
        peak = _peak_bytes(lambda: function(pixels))
        gc.collect()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        before = _free_bytes()
        with torch.cuda.graph(graph, stream=stream):
            logits = function(pixels)
        graph.replay()
        driver = before - _free_bytes()
        difference = relative_difference(logits, expected)
    if not difference < _AGREEMENT or not expected.std() > 0:
        raise ValueError(f"DeiT, {given.name}: the graph's logits differ from the eager ones by {difference:.1e}")
    return Form(given.name, graph.replay, logits, peak, driver)


def _peak_bytes(function: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _free_bytes() -> int:
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Relative L2 distance; NaN where anything is not finite."""
    got, expected = got.double(), expected.double()
    if not (got.isfinite().all() and expected.isfinite().all()):
        return float("nan")
    return float((got - expected).norm() / expected.norm())


def _check_agreement(forms: Sequence[Form]) -> None:
    for form in forms[1:]:
        difference = relative_difference(form.logits, forms[0].logits)
        if not difference < _AGREEMENT:
            raise RuntimeError(f'DeiT by "{form.name}" differs from "{forms[0].name}" by {difference:.1e}')


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises CompileTimeout in the block when it takes longer. Off the main thread, where no signal arrives, it does
    nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise CompileTimeout(f"not compiled within {seconds:g} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vimrt.bench.deit_gpu", description="Time DeiT on a GPU.")
    parser.add_argument("--size", choices=list(deit.SIZES), default="tiny")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    best = best_deit_on_gpu(
        options.size,
        (options.image_size, options.image_size),
        options.batch,
        torch.cuda.Stream(),
        dtype=DTYPES[options.dtype],
        compiled=not options.no_compile,
    )
    if options.json:
        print(json.dumps({"model": best.model, "best": best.form.name, "forms": best.forms}, indent=2))
        return 0
    for name, known in best.forms.items():
        text = known.get("left_out") or f"{1e3 * known['seconds']:.3f} ms, {known['peak_bytes'] / 2**20:.1f} MiB"
        print(f"{name:<36}{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures a model over image sizes and batches, beside its peers, and collects what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _vimrt
from ..engine import Engine
from . import on_cpu
from .machine import describe_gpu, describe_machine
from .report import Case, ImageSize, Progress, Report, Settings


def run_benchmark(
    settings: Settings, progress: Progress = lambda text: None, rates: Mapping[str, Any] | None = None
) -> Report:
    """Measures every image size with its batches; also the device's rates, unless they are given.

    Raises:
        ValueError: a peer cannot be compared with this model or on this device.
        ModuleNotFoundError: what is asked for needs PyTorch, which is missing; on a GPU all of it does.
        vimrt.Error: the model cannot be loaded or run.
    """
    engine = load_engine(settings)
    if rates is None:
        rates = measure_rates(engine, progress)
    cases = []
    for image_size, batch in settings.all_cases(engine.image_size):
        cases.append(_measure(settings, engine.device, image_size, batch, rates, progress))
    # Last, when the peers' packages are imported and can tell their versions.
    machine = describe_machine() | ({} if engine.device == "cpu" else {"gpu": describe_gpu(_index(engine.device))})
    return Report(engine.path, engine.backend, engine.threads, machine, rates, tuple(cases))


def load_engine(settings: Settings) -> Engine:
    """The engine that is measured; on a GPU in fp16 unless the settings say otherwise."""

    def load(dtype: str | None) -> Engine:
        return Engine(
            settings.model,
            device=settings.device,
            dtype=dtype,
            threads=settings.threads,
            max_memory=settings.max_memory,
        )

    engine = load(settings.dtype)
    return engine if settings.dtype or engine.device == "cpu" else load("fp16")


def measure_rates(engine: Engine, progress: Progress = lambda text: None) -> Mapping[str, Any]:
    """What the engine's device does at most, by the second."""
    if engine.device == "cpu":
        progress(f"measuring the rates of {engine.threads} threads")
        return _vimrt.cpu_rates(engine.threads)
    from .gpu_rates import gpu_rates  # PyTorch

    progress(f"measuring the rates of {engine.device}")
    return gpu_rates(_index(engine.device))


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _measure(
    settings: Settings,
    device: str,
    image_size: ImageSize,
    batch: int,
    rates: Mapping[str, Any],
    progress: Progress,
) -> Case:
    def load() -> Engine:
        return load_engine(settings)

    if device == "cpu":
        return on_cpu.measure(settings, load, image_size, batch, rates, progress)
    from . import on_gpu  # PyTorch

    return on_gpu.measure(settings, load, _index(device), image_size, batch, rates, progress)

"""Measures a model over image sizes and batches, beside its peers, and collects what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _vimrt
from ..engine import Engine
from .machine import describe_machine
from .resident import measure_resident
from .timing import Timing, interleave
from .work import Work, work_of

if TYPE_CHECKING:
    from .peers import Peer

#: Names that `Settings.peers` takes.
PEERS = ("deit", "vim")

#: Called with a sentence on what is under way.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: the .vimrt file.
        image_sizes: rows and columns, in pixels; none for the model's own.
        batches: numbers of images.
        device, threads, max_memory: as `vimrt.Engine` takes them.
        rounds: counted runs of each opponent.
        budget_seconds: time for one size and batch, once three rounds are counted.
        peers: opponents from PEERS; they need PyTorch and run on the CPU with as many threads as the engine.
        compiled: whether DeiT is tried with torch.compile, which takes up to minutes for each size.
        resident: whether resident memory is measured, in a process of its own for each size and batch.
    """

    model: Path
    image_sizes: Sequence[tuple[int, int]] = ()
    batches: Sequence[int] = (1,)
    device: str = "auto"
    threads: int | None = None
    max_memory: int | None = None
    rounds: int = 20
    budget_seconds: float = 30.0
    peers: Sequence[str] = ()
    compiled: bool = True
    resident: bool = False


@dataclass(frozen=True)
class Measured:
    """One runtime at one size and batch. `activation_bytes` is None where it is not known."""

    timing: Timing
    activation_bytes: int | None
    variant: str


@dataclass(frozen=True)
class Case:
    """One image size and batch.

    Attributes:
        image_size: rows and columns.
        batch: number of images.
        work: what cannot be avoided.
        floor_seconds: the work at the processor's measured rates; None without them.
        runtimes: what was measured: "vimrt" first, then the peers by name.
        planned_peak, lower_bound: of the activations' arena for the whole batch, in bytes. A batch that runs in slices
            holds less, as its activation_bytes say.
        resident: as measure_resident() gives it; None where it was not asked for.
    """

    image_size: tuple[int, int]
    batch: int
    work: Work
    floor_seconds: float | None
    runtimes: Mapping[str, Measured]
    planned_peak: int
    lower_bound: int
    resident: Mapping[str, int] | None = None

    def images_per_second(self, runtime: str) -> float:
        """Throughput by the median run."""
        return self.batch / self.runtimes[runtime].timing.median

    def speedup(self, peer: str) -> float:
        """How many times faster vimrt is than `peer`, by their medians."""
        return self.runtimes[peer].timing.median / self.runtimes["vimrt"].timing.median

    @property
    def over_floor(self) -> float | None:
        """vimrt's median time over the floor; None without one."""
        return self.runtimes["vimrt"].timing.median / self.floor_seconds if self.floor_seconds else None


@dataclass(frozen=True)
class Report:
    """All cases, and where they were measured. `rates` are those of `vimrt._vimrt.cpu_rates`, None off the CPU."""

    model: str
    backend: str
    threads: int
    machine: Mapping[str, Any]
    rates: Mapping[str, float] | None
    cases: Sequence[Case] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it: seconds, bytes, counts."""
        return {
            "model": self.model,
            "backend": self.backend,
            "threads": self.threads,
            "machine": dict(self.machine),
            "rates": None if self.rates is None else dict(self.rates),
            "results": [_case_to_dict(case) for case in self.cases],
        }


def _case_to_dict(case: Case) -> dict[str, Any]:
    runtimes = {
        name: {
            "seconds": measured.timing.median,
            "quartiles": list(measured.timing.quartiles),
            "calls": len(measured.timing.calls),
            "images_per_second": case.images_per_second(name),
            "activation_bytes": measured.activation_bytes,
            "variant": measured.variant,
        }
        for name, measured in case.runtimes.items()
    }
    return {
        "image_size": list(case.image_size),
        "batch": case.batch,
        "runtimes": runtimes,
        "speedup": {name: case.speedup(name) for name in case.runtimes if name != "vimrt"},
        "exponentials": case.work.exponentials,
        "matrix_flops": case.work.matrix_flops,
        "floor_seconds": case.floor_seconds,
        "over_floor": case.over_floor,
        "planned_peak": case.planned_peak,
        "lower_bound": case.lower_bound,
        "resident": None if case.resident is None else dict(case.resident),
    }


def run_benchmark(
    settings: Settings, progress: Progress = lambda text: None, rates: Mapping[str, float] | None = None
) -> Report:
    """Measures every image size with every batch; also the CPU's rates, unless they are given.

    Raises:
        ValueError: a peer cannot be compared with this model or on this device.
        ModuleNotFoundError: a peer needs PyTorch, which is missing.
        vimrt.Error: the model cannot be loaded or run.
    """
    engine = _load(settings)
    if settings.peers and engine.device != "cpu":
        raise ValueError(f"the peers run on the CPU, but the engine on {engine.device}; give device cpu")
    if engine.device == "cpu" and rates is None:
        progress(f"measuring the rates of {engine.threads} threads")
        rates = _vimrt.cpu_rates(engine.threads)
    sizes = settings.image_sizes or (engine.image_size,)
    cases = tuple(_measure(settings, size, batch, rates, progress) for size in sizes for batch in settings.batches)
    # Last, when the peers' packages are imported and can tell their versions.
    return Report(engine.path, engine.backend, engine.threads, describe_machine(), rates, cases)


def _load(settings: Settings) -> Engine:
    return Engine(settings.model, device=settings.device, threads=settings.threads, max_memory=settings.max_memory)


def _measure(
    settings: Settings,
    image_size: tuple[int, int],
    batch: int,
    rates: Mapping[str, float] | None,
    progress: Progress,
) -> Case:
    place = f"{image_size[0]}x{image_size[1]}, batch {batch}"
    resident = None
    if settings.resident:
        progress(f"{place}: measuring resident memory")
        resident = measure_resident(str(settings.model), batch, image_size, settings.device, settings.threads)
    engine = _load(settings)  # a new one, so that its arena is this case's alone
    program = engine.program(batch, image_size)
    pixels = np.random.default_rng(0).standard_normal((batch, 3, *image_size), dtype=np.float32)
    logits = engine.run(pixels)
    functions: dict[str, Callable[[], object]] = {"vimrt": lambda: engine.run(pixels, out=logits)}
    peers: dict[str, Peer] = {}
    for name in settings.peers:
        progress(f"{place}: preparing {name}")
        peers[name] = _prepare(name, engine, batch, image_size, settings.compiled)
        functions[name] = peers[name].run
    progress(f"{place}: timing {', '.join(functions)}")
    timings = interleave(functions, settings.rounds, settings.budget_seconds)
    runtimes = {"vimrt": Measured(timings["vimrt"], engine.memory["activations"], engine.backend)}
    for name, peer in peers.items():
        runtimes[name] = Measured(timings[name], peer.activation_bytes, peer.variant)
    work = work_of(engine.info, batch, image_size)
    floor = None if rates is None else work.floor_seconds(**rates)
    return Case(image_size, batch, work, floor, runtimes, program["peak"], program["lower_bound"], resident)


def _prepare(name: str, engine: Engine, batch: int, image_size: tuple[int, int], compiled: bool) -> Peer:
    from . import peers  # PyTorch, only where it is compared with

    if name == "deit":
        return peers.prepare_deit(engine.info, batch, image_size, engine.threads, compiled=compiled)
    return peers.prepare_vim(engine.info, batch, image_size, engine.threads)

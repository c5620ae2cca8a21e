"""What a benchmark is asked for, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .timing import Timing
from .work import Work

#: Names that `Settings.peers` takes.
PEERS = ("deit", "vim")

#: Called with a sentence on what is under way.
Progress = Callable[[str], None]

#: Rows and columns, in pixels.
ImageSize: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: the .vimrt file.
        image_sizes: rows and columns, in pixels; none for the model's own.
        batches: numbers of images; every size is measured with every batch.
        cases: image sizes with their batches, in place of `image_sizes` and `batches`.
        device, dtype, threads, max_memory: as `vimrt.Engine` takes them; on a GPU dtype is fp16 unless given.
        rounds: counted runs of each opponent, at least; on a GPU 50 or more.
        budget_seconds: time for one size and batch, once three rounds are counted.
        peers: opponents from PEERS; they need PyTorch and run on the engine's device, on the CPU with as many threads.
        compiled: whether DeiT is tried with torch.compile, which takes up to minutes for each size.
        compile_seconds: on a GPU, the time after which a compilation is given up.
        resident: on the CPU, whether resident memory is measured, in a process of its own for each size and batch.
    """

    model: Path
    image_sizes: Sequence[ImageSize] = ()
    batches: Sequence[int] = (1,)
    cases: Sequence[tuple[ImageSize, int]] = ()
    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    max_memory: int | None = None
    rounds: int = 20
    budget_seconds: float = 30.0
    peers: Sequence[str] = ()
    compiled: bool = True
    compile_seconds: float = 180.0
    resident: bool = False

    def all_cases(self, own_size: ImageSize) -> list[tuple[ImageSize, int]]:
        """Every image size with its batch; `own_size` is the model's."""
        sizes = self.image_sizes or (own_size,)
        return list(self.cases) or [(size, batch) for size in sizes for batch in self.batches]


@dataclass(frozen=True)
class Measured:
    """One runtime at one size and batch.

    Attributes:
        timing: of the form that counts.
        activation_bytes: the most that is held for activations at a time, by the runtime's own count; None where it is
            not known.
        variant: how it ran, for people.
        driver_bytes: on a GPU, what the driver handed out for it; None elsewhere.
        forms: what is known of the ways of running it that were tried, by name.
    """

    timing: Timing
    activation_bytes: int | None
    variant: str
    driver_bytes: int | None = None
    forms: Mapping[str, Any] = field(default_factory=dict)


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
        clocks: on a GPU, as ClockSampler.between() gives them for the timed runs; None where they cannot be read.
    """

    image_size: ImageSize
    batch: int
    work: Work
    floor_seconds: float | None
    runtimes: Mapping[str, Measured]
    planned_peak: int
    lower_bound: int
    resident: Mapping[str, int] | None = None
    clocks: Mapping[str, float] | None = None

    def images_per_second(self, runtime: str) -> float:
        """Throughput by the median run."""
        return self.batch / self.runtimes[runtime].timing.median

    def speedup(self, peer: str) -> float:
        """How many times faster vimrt is than `peer`, by their medians."""
        return self.runtimes[peer].timing.median / self.runtimes["vimrt"].timing.median

    def memory_ratio(self, peer: str) -> float | None:
        """vimrt's activation memory over that of `peer`; None where either is not known."""
        own, other = self.runtimes["vimrt"].activation_bytes, self.runtimes[peer].activation_bytes
        return None if own is None or not other else own / other

    @property
    def over_floor(self) -> float | None:
        """vimrt's median time over the floor; None without one."""
        return self.runtimes["vimrt"].timing.median / self.floor_seconds if self.floor_seconds else None

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON takes it: seconds, bytes, counts."""
        peers = [name for name in self.runtimes if name != "vimrt"]
        return {
            "image_size": list(self.image_size),
            "batch": self.batch,
            "runtimes": {name: self._runtime_to_dict(name) for name in self.runtimes},
            "speedup": {name: self.speedup(name) for name in peers},
            "memory_ratio": {name: self.memory_ratio(name) for name in peers},
            "exponentials": self.work.exponentials,
            "matrix_flops": self.work.matrix_flops,
            "floor_seconds": self.floor_seconds,
            "over_floor": self.over_floor,
            "planned_peak": self.planned_peak,
            "lower_bound": self.lower_bound,
            "resident": None if self.resident is None else dict(self.resident),
            "clocks": None if self.clocks is None else dict(self.clocks),
        }

    def _runtime_to_dict(self, name: str) -> dict[str, Any]:
        measured = self.runtimes[name]
        return {
            "seconds": measured.timing.median,
            "quartiles": list(measured.timing.quartiles),
            "calls": len(measured.timing.calls),
            "images_per_second": self.images_per_second(name),
            "activation_bytes": measured.activation_bytes,
            "driver_bytes": measured.driver_bytes,
            "variant": measured.variant,
            "forms": dict(measured.forms),
        }


@dataclass(frozen=True)
class Report:
    """All cases, and where they were measured.

    `rates` are those of `vimrt._vimrt.cpu_rates` or of `vimrt.bench.gpu_rates`.
    """

    model: str
    backend: str
    threads: int
    machine: Mapping[str, Any]
    rates: Mapping[str, Any] | None
    cases: Sequence[Case] = field(default_factory=tuple)

    @property
    def on_gpu(self) -> bool:
        """Whether the engine ran on a GPU."""
        return self.backend.startswith("cuda")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it: seconds, bytes, counts."""
        return {
            "model": self.model,
            "backend": self.backend,
            "threads": self.threads,
            "machine": dict(self.machine),
            "rates": None if self.rates is None else dict(self.rates),
            "results": [case.to_dict() for case in self.cases],
        }

"""Where the time of a run goes: its steps timed one by one, beside the least time that each could take.

The least time of a step is the largest of its bytes at the rate of a copy, its matrix products and its exponentials,
each at the device's measured rate: one kernel may do all three at once. Its bytes are those of the buffers it reads and
writes, without scratch memory of its own, and of its weights. A step that reads a part of a buffer counts all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine import Engine
from .report import ImageSize
from .work import Part, Work, parts_of

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# What the kind of a step contains where it computes a part of a node that no step is named after.
_HOST_OF = {"patch_embed": ("linear", "patch"), "x_proj": ("scan",), "dt_proj": ("scan",), "scan": ("scan", "mixer")}


@dataclass(frozen=True)
class StepProfile:
    """A step, or all steps of one kind: seconds, what they do, and the least time for it; None without rates."""

    name: str
    steps: int
    seconds: float
    bytes: int
    work: Work
    floor_seconds: float | None

    @property
    def kind(self) -> str:
        """The first word of its name; the rest says of which node it is."""
        return self.name.partition(" ")[0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "name": self.name,
            "steps": self.steps,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "exponentials": self.work.exponentials,
            "matrix_flops": self.work.matrix_flops,
            "floor_seconds": self.floor_seconds,
        }


@dataclass(frozen=True)
class ProfileReport:
    """All steps of a run of `images` images: the batch, or the slice that the engine runs it in."""

    model: str
    backend: str
    image_size: ImageSize
    batch: int
    images: int
    rates: Mapping[str, Any] | None
    steps: Sequence[StepProfile]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def kinds(self) -> list[StepProfile]:
        """The steps of each kind together, the longest first."""
        kinds: dict[str, list[StepProfile]] = {}
        for step in self.steps:
            kinds.setdefault(step.kind, []).append(step)
        return sorted((_together(kind, steps) for kind, steps in kinds.items()), key=lambda kind: -kind.seconds)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: seconds, bytes, counts."""
        return {
            "model": self.model,
            "backend": self.backend,
            "image_size": list(self.image_size),
            "batch": self.batch,
            "images": self.images,
            "rates": None if self.rates is None else dict(self.rates),
            "seconds": self.seconds,
            "kinds": [kind.to_dict() for kind in self.kinds()],
            "steps": [step.to_dict() for step in self.steps],
        }


def profile_run(
    engine: Engine, image_size: ImageSize, batch: int, rates: Mapping[str, Any] | None, repetitions: int = 20
) -> ProfileReport:
    """Times the steps of a run of `batch` images; `rates` are those of measure_rates()."""
    timed = engine.profile(batch, image_size, repetitions)
    program = engine.program(timed.images, image_size)
    own = {}  # work and weights of each part's steps, in order
    for part, images in {_part(record): record["images"] for record in program["steps"]}.items():
        names = [record["name"] for record in program["steps"] if _part(record) == part]
        own[part] = iter(zip(*attribute(names, parts_of(engine.info, images, image_size)), strict=True))
    steps = []
    for step, record in zip(timed.steps, program["steps"], strict=True):
        work, weights = next(own[_part(record)])
        moved = _buffer_bytes(record, program["buffers"]) + weights * _ITEM_BYTES[engine.dtype]
        steps.append(StepProfile(step.name, 1, step.seconds, moved, work, _floor(moved, work, rates)))
    return ProfileReport(engine.path, engine.backend, image_size, batch, timed.images, rates, steps)


def _part(record: Mapping[str, Any]) -> tuple[int, int]:
    """Which part of the batch a step of a program has."""
    return record["round"], record["branch"]


def attribute(names: Sequence[str], parts: Iterable[Part]) -> tuple[list[Work], list[int]]:
    """For each step of these names, the work and the elements of weights of the nodes' parts that it computes.

    A step that is named after its nodes ("linear layers.0.in_proj", several with commas between them) has those nodes'
    parts. Where steps have no such names, nodes and steps are walked together, in order.
    """
    works, weights = [Work() for _ in names], [0 for _ in names]
    last = 0
    for part in parts:
        own = [i for i, name in enumerate(names) if part.node in name.partition(" ")[2].split(", ")]
        step = _step_of(part.name, names, own or range(last, len(names)))
        if step is None:
            continue
        last = step if part.name in ("scan", "x_proj", "dt_proj") or own else step + 1
        works[step] += part.work
        weights[step] += part.weights
    return works, weights


def _step_of(part: str, names: Sequence[str], candidates: Iterable[int]) -> int | None:
    """The first candidate whose kind has the part's name in it, or else of a kind that computes it along."""
    for word in (part, *_HOST_OF.get(part, ())):
        for i in candidates:
            if word in names[i].partition(" ")[0]:
                return i
    return None


def _buffer_bytes(step: Mapping[str, Any], buffers: Sequence[Mapping[str, Any]]) -> int:
    """Bytes read and written: a buffer that is both counts twice, one that lives in this step alone not at all.

    A buffer counts whole, also where a step reads a part of its rows, as of x and z side by side.
    """
    touched = [*dict.fromkeys(step["reads"]), *dict.fromkeys(step["writes"])]
    lasting = (buffers[i] for i in touched)
    return sum(buffer["size"] for buffer in lasting if buffer["offset"] < 0 or buffer["end"] - buffer["begin"] > 1)


def _floor(moved: int, work: Work, rates: Mapping[str, Any] | None) -> float | None:
    if rates is None:
        return None
    products = rates.get("matmul_flops_per_second") or rates["fma_flops_per_second"]
    copies = rates.get("copy_bytes_per_second")  # the CPU's is not measured
    seconds: tuple[float, ...] = (
        work.exponentials / rates["exp_per_second"],
        work.matrix_flops / products,
        moved / copies if copies else 0.0,
    )
    return max(seconds)


def _together(kind: str, steps: Sequence[StepProfile]) -> StepProfile:
    floors = [step.floor_seconds for step in steps if step.floor_seconds is not None]
    return StepProfile(
        kind,
        len(steps),
        sum(step.seconds for step in steps),
        sum(step.bytes for step in steps),
        sum((step.work for step in steps), Work()),
        sum(floors) if floors else None,
    )

"""The paper's two figures (arXiv 2401.09417, figure 1): speed and memory against resolution."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .report import Case

#: File types that plot() can make.
FORMATS = ("png", "svg", "pdf")

_TITLES = {"vimrt": "vimrt", "deit": "DeiT, PyTorch", "vim": "Vim, PyTorch"}
_COLOURS = {"vimrt": "#c1432e", "deit": "#2f6690", "vim": "#7f8c8d"}
_LINES = ("-", "--", ":", "-.")
_MARKERS = {"vimrt": "o", "deit": "s", "vim": "^"}
# The part of an axis that a tick's label takes; a size nearer than that to the one before has none.
_LABEL_WIDTH = 0.06


@dataclass(frozen=True)
class Point:
    """One runtime, at the square root of an image's area, with a batch. Memory in bytes; None where it is not known."""

    runtime: str
    side: float
    batch: int
    images_per_second: float
    activation_bytes: int | None


def points_of(cases: Iterable[Case]) -> list[Point]:
    """What there is to draw of `cases`."""
    return [
        Point(
            name,
            float((case.image_size[0] * case.image_size[1]) ** 0.5),
            case.batch,
            case.images_per_second(name),
            measured.activation_bytes,
        )
        for case in cases
        for name, measured in case.runtimes.items()
    ]


def plot(points: Sequence[Point], title: str, kind: str) -> bytes:
    """Images per second and activation memory against the image's side, both on logarithmic axes.

    Sizes that were measured with the same batches make a line for each batch; where every size has a batch of its own,
    one line joins them, and the batch stands below the size. Runtimes whose memory is not known are left out of the
    second figure.

    Args:
        points: what was measured.
        title: above both figures.
        kind: one of FORMATS.

    Returns:
        the file's bytes.
    """
    with matplotlib.rc_context({"font.size": 10, "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        figure.suptitle(title)
        speed, memory = figure.subplots(1, 2)
        _draw(speed, points, lambda point: point.images_per_second)
        _draw(memory, points, lambda point: point.activation_bytes / 2**20 if point.activation_bytes else None)
        speed.set_ylabel("images per second")
        memory.set_ylabel("activation memory, MiB")
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150)
    return file.getvalue()


def _draw(axes: Axes, points: Sequence[Point], value: Callable[[Point], float | None]) -> None:
    sides = sorted({point.side for point in points})
    batches = {side: sorted({point.batch for point in points if point.side == side}) for side in sides}
    every_batch = sorted({point.batch for point in points})
    own_batches = len(every_batch) > 1 and all(len(some) == 1 for some in batches.values())
    lines: Sequence[int | None] = [None] if own_batches else every_batch
    for name in (name for name in _TITLES if any(point.runtime == name for point in points)):
        for batch, line in zip(lines, _LINES * len(lines), strict=False):
            own = [point for point in points if point.runtime == name and batch in (None, point.batch)]
            known = sorted((point.side, y) for point in own if (y := value(point)) is not None)
            if known:
                label = _TITLES[name] if len(lines) == 1 else f"{_TITLES[name]}, batch {batch}"
                axes.plot(*zip(*known, strict=True), line, marker=_MARKERS[name], color=_COLOURS[name], label=label)
    _label_axes(axes, {side: f"\nB{batches[side][0]}" if own_batches else "" for side in sides})


def _label_axes(axes: Axes, notes: dict[float, str]) -> None:
    """`notes` holds what stands below each side."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("image side, pixels")
    axes.set_xticks(list(notes), _tick_labels(notes))
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    spread = max(1.0, (10 * low / high) ** 0.5)  # a decade at least, or there would be hardly a tick
    axes.set_ylim(low / spread, high * spread)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.lines:
        axes.legend()


def _tick_labels(notes: dict[float, str]) -> list[str]:
    closest = (max(notes) / min(notes)) ** _LABEL_WIDTH
    labels, last = [], 0.0
    for side, note in notes.items():
        clear = side >= last * closest
        labels.append(f"{side:.0f}{note}" if clear else "")
        last = side if clear else last
    return labels

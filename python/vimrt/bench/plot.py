"""The paper's two figures (arXiv 2401.09417, figure 1): speed and memory against resolution."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .runner import Case, Report

#: File types that plot() can make.
FORMATS = ("png", "svg", "pdf")

_TITLES = {"vimrt": "vimrt", "deit": "DeiT, PyTorch", "vim": "Vim, PyTorch"}
_COLOURS = {"vimrt": "#c1432e", "deit": "#2f6690", "vim": "#7f8c8d"}
_LINES = ("-", "--", ":", "-.")
_MARKERS = {"vimrt": "o", "deit": "s", "vim": "^"}


def plot(report: Report, title: str, kind: str) -> bytes:
    """Images per second and activation memory against the image's side, both on logarithmic axes.

    A rectangular image stands at the square root of its area. Runtimes whose memory is not known are left out of the
    second figure.

    Args:
        report: what was measured; several sizes make lines, several batches line styles.
        title: above both figures.
        kind: one of FORMATS.

    Returns:
        the file's bytes.
    """
    with matplotlib.rc_context({"font.size": 10, "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        figure.suptitle(title)
        speed, memory = figure.subplots(1, 2)
        _draw(speed, report.cases, lambda case, name: case.images_per_second(name))
        _draw(memory, report.cases, _activation_mebibytes)
        speed.set_ylabel("images per second")
        memory.set_ylabel("activation memory, MiB")
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150)
    return file.getvalue()


def _activation_mebibytes(case: Case, name: str) -> float | None:
    size = case.runtimes[name].activation_bytes
    return size / 2**20 if size else None


def _draw(axes: Axes, cases: Sequence[Case], value: Callable[[Case, str], float | None]) -> None:
    batches = sorted({case.batch for case in cases})
    names = [name for name in _TITLES if any(name in case.runtimes for case in cases)]
    for name in names:
        for batch, line in zip(batches, _LINES * len(batches), strict=False):
            points = [(_side(case), value(case, name)) for case in cases if case.batch == batch]
            known = sorted((side, y) for side, y in points if y is not None)
            if known:
                label = _TITLES[name] if len(batches) == 1 else f"{_TITLES[name]}, batch {batch}"
                sides, values = zip(*known, strict=True)
                axes.plot(sides, values, line, marker=_MARKERS[name], color=_COLOURS[name], label=label)
    _label_axes(axes, sorted({_side(case) for case in cases}))


def _label_axes(axes: Axes, sides: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("image side, pixels")
    axes.set_xticks(sides, [f"{side:.0f}" for side in sides])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    spread = max(1.0, (10 * low / high) ** 0.5)  # a decade at least, or there would be hardly a tick
    axes.set_ylim(low / spread, high * spread)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()


def _side(case: Case) -> float:
    rows, columns = case.image_size
    return float((rows * columns) ** 0.5)

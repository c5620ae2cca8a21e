"""The tables that `vimrt bench` prints."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..bench.profile import ProfileReport, StepProfile
from ..bench.report import Case, Measured, Report
from .output import add_row, memory, show, size_text, table

_TITLES = {"vimrt": "vimrt", "deit": "DeiT, PyTorch", "vim": "Vim, PyTorch"}


def print_report(report: Report) -> None:
    """Prints what was measured: on the CPU a row for each runtime, on a GPU one for each size and batch."""
    versions = ", ".join(f"{name} {version}" for name, version in report.machine["versions"].items())
    if report.on_gpu:
        _print_gpu(report, versions)
        return
    rows = table(
        f"{Path(report.model).name} on {report.machine['processor']}, {report.backend}",
        *("image", "batch", "runtime", "ms", "images/s", "vimrt is", "activations", "over floor"),
        right=("batch", "ms", "images/s", "vimrt is", "activations", "over floor"),
    )
    for case in report.cases:
        _add_case(rows, case)
    show(rows, versions)
    if report.rates is not None:
        exp, fma = (report.rates[name] / 1e9 for name in ("exp_per_second", "fma_flops_per_second"))
        show(f"measured rates: {exp:.2f} G exponentials/s, {fma:.0f} GFLOP/s of fp32 multiply-adds")
    for case in report.cases:
        if case.resident is not None:
            show(_resident_line(case))


def _add_case(rows: Table, case: Case) -> None:
    for name, measured in case.runtimes.items():
        own = name == "vimrt"
        add_row(
            rows,
            size_text(case.image_size),
            case.batch,
            _TITLES[name] if own else f"{_TITLES[name]} ({measured.variant})",
            f"{measured.timing.median * 1e3:.2f}",
            f"{case.images_per_second(name):.1f}",
            "" if own else f"{case.speedup(name):.2f} x as fast",
            "" if measured.activation_bytes is None else memory(measured.activation_bytes),
            f"{case.over_floor:.2f} x" if own and case.over_floor is not None else "",
            style="bold" if own else None,
        )


def _resident_line(case: Case) -> str:
    assert case.resident is not None
    growth, activations, program = (case.resident[name] for name in ("growth", "planned", "program"))
    return (
        f"{size_text(case.image_size)}, batch {case.batch}: resident {memory(growth)} above weights, planned "
        f"{memory(activations)} of activations and {memory(program)} of program: "
        f"{growth / (activations + program):.2f} x"
    )


def _print_gpu(report: Report, versions: str) -> None:
    columns: tuple[str, ...] = ("image", "batch", "vimrt ms", "images/s", "over floor", "MiB (driver)")
    compared = any("deit" in case.runtimes for case in report.cases)
    if compared:
        columns += ("DeiT ms", "vimrt is", "DeiT MiB (driver)", "memory", "DeiT runs as")
    gpu = report.machine["gpu"]
    rows = table(f"{Path(report.model).name}, {report.backend}", *columns, right=columns[1:10])
    for case in report.cases:
        own = case.runtimes["vimrt"]
        cells = [
            size_text(case.image_size),
            case.batch,
            f"{own.timing.median * 1e3:.3f}",
            f"{case.images_per_second('vimrt'):.1f}",
            f"{case.over_floor:.2f} x" if case.over_floor is not None else "",
            _mebibytes(own),
        ]
        add_row(rows, *cells, *(_beside_deit(case) if compared else ()))
    show(rows, f"driver {gpu['driver']}, CUDA {gpu['cuda']}, {versions}")
    if report.rates is not None:
        exp, products, copies = (
            report.rates[f"{name}_per_second"] / 1e12 for name in ("exp", "matmul_flops", "copy_bytes")
        )
        source = report.rates["exp_source"]
        show(
            f"rates: {exp:.2f} T exponentials/s ({source}), {products:.0f} TFLOP/s of fp16, {copies:.2f} TB/s of copies"
        )
    clocks = [case.clocks for case in report.cases if case.clocks is not None]
    if clocks:
        low, high = min(one["sm_mhz_lowest"] for one in clocks), max(one["sm_mhz"] for one in clocks)
        show(f"SM clock while timed: {low:.0f} to {high:.0f} MHz")


def _beside_deit(case: Case) -> list[str]:
    deit = case.runtimes["deit"]
    ratio = case.memory_ratio("deit")
    return [
        f"{deit.timing.median * 1e3:.3f}",
        f"{case.speedup('deit'):.2f} x as fast",
        _mebibytes(deit),
        "" if ratio is None else f"{1 - ratio:.1%} less" if ratio <= 1 else f"{ratio - 1:.1%} more",
        deit.variant,
    ]


def _mebibytes(measured: Measured) -> str:
    own, driver = (
        "?" if size is None else f"{size / 2**20:.1f}" for size in (measured.activation_bytes, measured.driver_bytes)
    )
    return f"{own} ({driver})"


def print_profile(report: ProfileReport) -> None:
    """Prints a row for each kind of step, the longest first."""
    columns = ("step", "count", "ms", "share", "MB", "GFLOP", "G exp", "floor ms", "over floor")
    sliced = "" if report.images == report.batch else f", in slices of {report.images}"
    title = f"{Path(report.model).name}, {report.backend}: {size_text(report.image_size)}, batch {report.batch}{sliced}"
    rows = table(title, *columns, right=columns[1:])
    for kind in report.kinds():
        add_row(rows, kind.name, *_profile_cells(kind, report.seconds))
    show(rows, f"{len(report.steps)} steps, {report.seconds * 1e3:.3f} ms, timed one by one")


def _profile_cells(kind: StepProfile, total: float) -> list[str]:
    floor = kind.floor_seconds
    return [
        str(kind.steps),
        f"{kind.seconds * 1e3:.3f}",
        f"{kind.seconds / total:.1%}",
        f"{kind.bytes / 1e6:.1f}",
        f"{kind.work.matrix_flops / 1e9:.2f}" if kind.work.matrix_flops else "",
        f"{kind.work.exponentials / 1e9:.3f}" if kind.work.exponentials else "",
        "" if not floor else f"{floor * 1e3:.3f}",
        "" if not floor else f"{kind.seconds / floor:.2f} x",
    ]

"""`vimrt bench MODEL`: speed and memory, alone and beside DeiT and Vim in PyTorch."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from ..bench.runner import PEERS, Case, Progress, Report, Settings, run_benchmark
from . import CommandError
from .options import Subparsers, add_command, add_engine_options, add_json, parse_image_size, positive
from .output import add_row, console, memory, print_json, show, size_text, table, write_atomically

_PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_TITLES = {"vimrt": "vimrt", "deit": "DeiT, PyTorch", "vim": "Vim, PyTorch"}

_EXAMPLES = """\
  vimrt bench vim_s.vimrt
  vimrt bench vim_s.vimrt --image-size 224 512 1248 --compare deit vim --threads 2
  vimrt bench vim_s.vimrt --image-size 224 --batch 1 8 32 --json > bench.json
  vimrt bench vim_s.vimrt --image-size 224 512 1024 --compare deit --plot bench.png --output bench.json
"""


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt bench` to the command line."""
    parser = add_command(
        subparsers,
        "bench",
        summary="measure speed and memory, beside PyTorch if wanted",
        description="Measures the median time of a run after a warm-up. Peers take turns with vimrt in the same\n"
        "process on the same cores, so that other load falls on all alike. The floor is the time of the scan's\n"
        "exponentials and the matrix products at this processor's measured rates.",
        examples=_EXAMPLES,
    )
    add_engine_options(parser)
    parser.add_argument(
        "--image-size",
        type=parse_image_size,
        nargs="+",
        default=[],
        metavar="N|HxW",
        help="sizes in pixels (default: the model's own)",
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], metavar="N", help="batches (default: 1)")
    parser.add_argument("--runs", type=positive, default=20, metavar="N", help="counted runs of each (default: 20)")
    parser.add_argument(
        "--budget",
        type=positive,
        default=30,
        metavar="SECONDS",
        help="for each size and batch: end before --runs, but after 3, when this has passed (default: 30)",
    )
    _add_peer_options(parser)
    parser.add_argument("--resident", action="store_true", help="also measure resident memory, in a process of its own")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON document to a file as well")
    parser.add_argument("--plot", type=_plot_file, metavar="FILE", help="draw speed and memory: .png, .svg or .pdf")
    add_json(parser)
    parser.set_defaults(func=run)
    return parser


def _add_peer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compare",
        choices=PEERS,
        nargs="+",
        default=[],
        help="deit: DeiT of the model's size at its best; vim: the model itself in PyTorch (needs PyTorch)",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="try DeiT without torch.compile: quicker to prepare, maybe slower to run",
    )


def _plot_file(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PLOT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} is no plot file; end the name with {', '.join(_PLOT_SUFFIXES)}")
    return path


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns 0."""
    for needed, package in ((args.compare, "torch"), (args.plot, "matplotlib")):
        if needed:
            importlib.import_module(package)  # what is missing is told before minutes of measuring, not after
    settings = Settings(
        model=args.model,
        image_sizes=args.image_size,
        batches=args.batch,
        device=args.device,
        threads=args.threads,
        max_memory=args.max_memory,
        rounds=args.runs,
        budget_seconds=args.budget,
        peers=args.compare,
        compiled=not args.no_compile,
        resident=args.resident,
    )
    with _progress() as progress:
        try:
            report = run_benchmark(settings, progress)
        except (RuntimeError, ValueError) as error:
            raise CommandError(str(error)) from error
    document = report.to_dict()
    if args.output is not None:
        write_atomically(args.output, json.dumps(document, indent=2).encode())
    if args.plot is not None:
        _plot(report, args.plot)
    if args.json:
        print_json(document)
    else:
        print_report(report)
    return 0


@contextmanager
def _progress() -> Iterator[Progress]:
    """What is under way, on stderr: one changing line on a terminal, a line for each step elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    # No spinner: its thread would take part of the cores that are being measured.
    out = console(stderr=True)
    yield lambda text: out.print(text, style="dim")


def _plot(report: Report, path: Path) -> None:
    from ..bench.plot import plot

    title = f"{Path(report.model).name} on {report.machine['processor']}, {report.threads} threads"
    write_atomically(path, plot(report, title, path.suffix.lower().lstrip(".")))


def print_report(report: Report) -> None:
    """Prints a table with a row for each runtime at each size and batch."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    rows = table(
        f"{Path(report.model).name} on {machine['processor']}, {report.backend}",
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

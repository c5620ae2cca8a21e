"""`vimrt bench MODEL`: speed and memory, alone and beside DeiT and Vim in PyTorch."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..bench.profile import ProfileReport, profile_run
from ..bench.report import PEERS, ImageSize, Progress, Report, Settings
from ..bench.runner import load_engine, measure_rates, run_benchmark
from . import CommandError
from .bench_tables import print_profile, print_report
from .options import Subparsers, add_command, add_engine_options, add_json, parse_image_size, positive
from .output import console, print_json, write_atomically

_PLOT_SUFFIXES = (".png", ".svg", ".pdf")

_EXAMPLES = """\
  vimrt bench vim_s.vimrt
  vimrt bench vim_s.vimrt --image-size 224 512 1248 --compare deit vim --threads 2
  vimrt bench vim_s.vimrt --image-size 224 --batch 1 8 32 --json > bench.json
  vimrt bench vim_s.vimrt --image-size 224 512 1024 --compare deit --plot bench.png --output bench.json
  vimrt bench vim_s.vimrt --device cuda --compare deit --image-size 224 224:128 512:32 1248:8
  vimrt bench vim_s.vimrt --device cuda --profile --image-size 1248:8
"""


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt bench` to the command line."""
    parser = add_command(
        subparsers,
        "bench",
        summary="measure speed and memory, beside PyTorch if wanted",
        description="Measures the median time of a run after a warm-up. Peers take turns with vimrt in the same\n"
        "process on the same cores or the same card, so that other load falls on all alike. The floor is the time\n"
        "of the scan's exponentials and the matrix products at this device's measured rates.",
        examples=_EXAMPLES,
    )
    add_engine_options(parser)
    parser.add_argument(
        "--image-size",
        type=_size_and_batch,
        nargs="+",
        default=[],
        metavar="N|HxW[:BATCH]",
        help="sizes in pixels (default: the model's own); 512:32 is 512x512 with a batch of 32, whatever --batch says",
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], metavar="N", help="batches (default: 1)")
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16"), help="how activations are stored (default: fp32, on a GPU fp16)"
    )
    parser.add_argument("--runs", type=positive, default=20, metavar="N", help="counted runs of each (default: 20)")
    parser.add_argument(
        "--budget",
        type=positive,
        default=30,
        metavar="SECONDS",
        help="for each size and batch: end before --runs, but after 3, when this has passed (default: 30)",
    )
    _add_peer_options(parser)
    parser.add_argument(
        "--profile", action="store_true", help="time the steps of a run one by one instead, of one size and batch"
    )
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
    parser.add_argument(
        "--compile-limit",
        type=positive,
        default=180,
        metavar="SECONDS",
        help="on a GPU, give up a compilation for one size and batch after this (default: 180)",
    )


def _size_and_batch(text: str) -> tuple[ImageSize, int | None]:
    size, colon, batch = text.partition(":")
    return parse_image_size(size), positive(batch) if colon else None


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
        batches=args.batch,
        cases=_cases(args),
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        max_memory=args.max_memory,
        rounds=args.runs,
        budget_seconds=args.budget,
        peers=args.compare,
        compiled=not args.no_compile,
        compile_seconds=args.compile_limit,
        resident=args.resident,
    )
    if args.profile and (args.compare or args.plot or args.resident):
        raise CommandError("--profile goes without --compare, --plot and --resident")
    report: Report | ProfileReport
    with _progress() as progress:
        try:
            report = _profile(settings, progress) if args.profile else run_benchmark(settings, progress)
        except (RuntimeError, ValueError) as error:
            raise CommandError(str(error)) from error
    document = report.to_dict()
    if args.output is not None:
        write_atomically(args.output, json.dumps(document, indent=2).encode())
    if args.json:
        print_json(document)
    elif isinstance(report, ProfileReport):
        print_profile(report)
    else:
        print_report(report)
    if args.plot is not None and isinstance(report, Report):
        _plot(report, args.plot)
    return 0


def _cases(args: argparse.Namespace) -> list[tuple[ImageSize, int]]:
    return [(size, batch) for size, own in args.image_size for batch in ([own] if own else args.batch)]


def _profile(settings: Settings, progress: Progress) -> ProfileReport:
    engine = load_engine(settings)
    cases = settings.all_cases(engine.image_size)
    if len(cases) > 1:
        raise ValueError(f"--profile takes one size and batch, and {len(cases)} were given")
    rates = measure_rates(engine, progress)
    (image_size, batch), repetitions = cases[0], settings.rounds
    progress(f"profiling {image_size[0]}x{image_size[1]}, batch {batch}")
    return profile_run(engine, image_size, batch, rates, repetitions)


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
    from ..bench.plot import plot, points_of

    name, gpu = Path(report.model).name, report.machine.get("gpu")
    where = f"{report.machine['processor']}, {report.threads} threads" if gpu is None else f"{gpu['name']}"
    write_atomically(path, plot(points_of(report.cases), f"{name} on {where}", path.suffix.lower().lstrip(".")))

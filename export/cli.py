"""The commands `vimrt export` and `vimrt verify`.

Each parser's `func` takes the parsed arguments and returns the exit code. What a user did wrong is an ExportError.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from . import convert
from .convert import ExportReport, export_checkpoint
from .verify import VerifyReport, verify

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_EXPORT_EXAMPLES = """\
examples:
  vimrt export vim_s.pth -o vim_s.vimrt --dtype fp16
  vimrt export finetuned.safetensors -o birds.vimrt --labels birds.txt --image-size 512x768
  vimrt export ablation.pth -o ablation.vimrt --class-token head --merge sum
"""
_VERIFY_EXAMPLES = """\
examples:
  vimrt verify vim_s.vimrt vim_s.pth
  vimrt verify vim_s.vimrt vim_s.pth --image-size 512x768 --batch 2 --device cpu
"""


def add_export_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt export CHECKPOINT -o MODEL` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="make a .vimrt file from a checkpoint",
        description="Recognises the Vision Mamba model in a checkpoint (.pth, .pt or .safetensors)\n"
        "and writes it as a .vimrt file.",
        epilog=_EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="the checkpoint; .pth and .pt need PyTorch")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the checkpoint's name, as .vimrt")
    parser.add_argument(
        "--weights",
        choices=("model", "model_ema"),
        help="which weights of a training checkpoint (default: model where there are such)",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "bf16"),
        help="of the matrices; small parameters stay fp32 (default: the checkpoint's own)",
    )
    _add_variant_options(parser)
    _add_preprocessing_options(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(func=run_export)
    return parser


def _add_variant_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what no tensor tells (defaults: the published models)")
    group.add_argument(
        "--class-token", choices=("middle", "head", "tail"), help="where a single class token stands (default: middle)"
    )
    group.add_argument(
        "--pool",
        choices=("mean", "max", "last"),
        help="what is classified (default: the class token, or the last token without one)",
    )
    group.add_argument("--merge", choices=("mean", "sum"), help="how the two directions are added (default: mean)")
    group.add_argument(
        "--stride",
        type=_positive,
        metavar="N",
        help="pixels between patches (default: 16 or 8 for the published 14x14 and 27x27 grids, else the patch size)",
    )
    group.add_argument(
        "--first-entry",
        action="store_true",
        help="at another resolution, resample positions as if the first entry were the class token's, wherever it "
        "stands; for checkpoints fine-tuned that way",
    )


def _add_preprocessing_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how a photograph becomes the input, and what comes out")
    group.add_argument(
        "--image-size", type=parse_image_size, metavar="N|HxW", help="in pixels (default: the trained size)"
    )
    group.add_argument("--labels", type=Path, metavar="FILE", help="class names, one on each line")
    for name, default in (("mean", convert.MEAN), ("std", convert.STD)):
        group.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            default=default,
            help=f"of values in 0..1 (default: {' '.join(str(value) for value in default)})",
        )
    group.add_argument(
        "--crop",
        type=float,
        default=convert.CROP,
        metavar="RATIO",
        help=f"central part of a resized photograph that is kept (default: {convert.CROP})",
    )


def add_verify_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt verify MODEL CHECKPOINT` to the command line."""
    parser = subparsers.add_parser(
        "verify",
        help="compare a .vimrt file with its checkpoint in PyTorch",
        description="Runs the engine and the PyTorch reference on the same random images and prints the\n"
        "relative L2 error of every block and output. Exits with 1 where one is beyond the tolerance.",
        epilog=_VERIFY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="the .vimrt file")
    parser.add_argument("checkpoint", type=Path, help="the checkpoint it was exported from")
    parser.add_argument(
        "--image-size", type=parse_image_size, metavar="N|HxW", help="in pixels (default: the model's own)"
    )
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="number of images (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random images (default: 0)")
    parser.add_argument(
        "--device", default="auto", help="where the engine runs: auto, cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="relative L2 error that passes (default: 1e-5 for fp32 weights on the CPU, otherwise 2e-3)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(func=run_verify)
    return parser


def parse_image_size(text: str) -> tuple[int, int]:
    """Rows and columns from "224" or "512x768". Raises argparse.ArgumentTypeError."""
    sides = text.lower().split("x")
    size = [int(side) for side in sides if side.isdecimal() and int(side) > 0]
    if len(size) != len(sides) or len(size) > 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image size; give pixels such as 224, or rows x columns: 512x768"
        )
    return size[0], size[-1]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def run_export(args: argparse.Namespace) -> int:
    """Exports as `args` say and prints what was recognised. Returns 0."""
    with _progress_bar() as progress:
        report = export_checkpoint(
            args.checkpoint,
            args.output or args.checkpoint.with_suffix(".vimrt"),
            weights=args.weights,
            class_token=args.class_token,
            pool=args.pool,
            merge=args.merge,
            stride=args.stride,
            first_entry=args.first_entry,
            image_size=args.image_size,
            labels=args.labels,
            mean=args.mean,
            std=args.std,
            crop=args.crop,
            dtype=args.dtype,
            progress=progress,
        )
    if args.json:
        print(report.to_json())
    else:
        _print_export(report, Console())
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Verifies as `args` say and prints the errors. Returns 0, or 1 where one is beyond the tolerance."""
    from .. import Engine

    report = verify(
        args.model,
        args.checkpoint,
        engine=Engine(args.model, device=args.device),
        image_size=args.image_size,
        batch=args.batch,
        seed=args.seed,
        tolerance=args.tolerance,
    )
    if args.json:
        print(report.to_json())
    else:
        print_verification(report, Console())
    return 0 if report.passed else 1


def _print_export(report: ExportReport, console: Console) -> None:
    table = Table(title=f"Recognised in {report.source.name}", title_justify="left")
    for heading in ("property", "value", "from"):
        table.add_column(heading)
    for row in report.rows:
        table.add_row(row.name, row.value, row.source)
    console.print(table)
    rows, columns = report.image_size
    labels = f"{report.labels} labels" if report.labels else "no labels"
    console.print(
        f"{report.output}: {report.parameters / 1e6:.2f} M parameters in {report.tensors} tensors, matrices "
        f"{report.dtype}, images {rows}x{columns}, {labels}, {report.size / 1e6:.1f} MB",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print(f"sha256 {report.sha256}", highlight=False, soft_wrap=True)


def print_verification(report: VerifyReport, console: Console) -> None:
    """Prints a line for each compared value; the first mismatch is marked."""
    table = Table(title=f"{report.model.name} against {report.checkpoint.name}", title_justify="left")
    table.add_column("value")
    table.add_column("relative L2 error", justify="right")
    table.add_column("")
    for comparison in report.comparisons:
        first = comparison.name == report.first_mismatch
        note = "mismatch starts here" if first else "" if comparison.passed else "mismatch"
        table.add_row(comparison.name, f"{comparison.error:.2e}", note, style=None if comparison.passed else "red")
    console.print(table)
    if not report.same_source:
        console.print(
            f"note: {report.model.name} was exported from another file than {report.checkpoint.name}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    verdict = "agree" if report.passed else "disagree"
    rows, columns = report.image_size
    console.print(
        f"engine and reference {verdict}: batch {report.batch}, images {rows}x{columns}, "
        f"tolerance {report.tolerance:g}",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _progress_bar() -> Iterator[convert.Progress | None]:
    """A bar on stderr while bytes are read, converted and written; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield report

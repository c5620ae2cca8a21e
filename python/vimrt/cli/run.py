"""`vimrt run MODEL IMAGE_OR_FOLDER...`: classifies images."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..engine import Engine, Prediction
from ..images import ByteArray, load_image
from . import CommandError
from .options import Subparsers, add_command, add_engine_options, add_image_size, add_json, load_engine, positive
from .output import add_row, console, error_line, print_json, show, table

#: What a folder is searched for; a file named by itself may be anything that Pillow reads.
SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

# With fewer images a progress bar would only flicker.
_MIN_IMAGES_FOR_BAR = 4

_EXAMPLES = """\
  vimrt run vim_s.vimrt photo.jpg
  vimrt run vim_s.vimrt holiday/ --top-k 1 --json > labels.json
  vimrt run vim_s.vimrt scan.tif --image-size 1024 --device cpu --threads 2
"""


@dataclass(frozen=True)
class Outcome:
    """One image file: its predictions, most probable first, or why there are none."""

    file: Path
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt run` to the command line."""
    parser = add_command(
        subparsers,
        "run",
        summary="classify images",
        description="Classifies images and prints the most probable classes of each. Folders are searched with\n"
        "all folders in them. An image that cannot be read is reported and passed over; the exit code is then 1.",
        examples=_EXAMPLES,
    )
    add_engine_options(parser)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, and folders")
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes for each image (default: 5)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images run at a time (default: 8)")
    add_image_size(parser)
    add_json(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns 0, or 1 where an image could not be read."""
    importlib.import_module("PIL")  # without Pillow, fail once instead of once for each image
    engine = load_engine(args)
    files = list(find_images(args.images))
    outcomes: list[Outcome] = []
    with _progress_bar(len(files)) as advance:
        for start in range(0, len(files), args.batch_size):
            batch = files[start : start + args.batch_size]
            outcomes += classify_files(engine, batch, args.top_k, args.image_size)
            advance(len(batch))
    if args.json:
        _print_json(engine, args.image_size or engine.image_size, outcomes)
    else:
        _print_table(outcomes)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        error_line(str(outcome.error))
    return 1 if failed else 0


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among `paths`, and the images in the folders among them, sorted by path within each folder.

    Raises:
        CommandError: a folder has no images.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise CommandError(f"{path}: the folder has no images; looked for {' '.join(sorted(SUFFIXES))}")
        yield from found


def classify_files(
    engine: Engine, files: Sequence[Path], top_k: int, image_size: tuple[int, int] | None
) -> list[Outcome]:
    """An outcome for each file, in order; all readable images are run as one batch."""
    images: dict[int, ByteArray] = {}
    errors: dict[int, str] = {}
    for index, file in enumerate(files):
        try:
            images[index] = load_image(file)
        except ValueError as error:
            errors[index] = str(error)
    logits = engine.run(list(images.values()), image_size=image_size) if images else ()
    predictions = {index: tuple(engine.top(row, top_k)) for index, row in zip(images, logits, strict=True)}
    return [Outcome(file, predictions.get(index, ()), errors.get(index)) for index, file in enumerate(files)]


def _print_json(engine: Engine, image_size: tuple[int, int], outcomes: Sequence[Outcome]) -> None:
    results = []
    for outcome in outcomes:
        entry: dict[str, object] = {"file": str(outcome.file)}
        if outcome.error is None:
            entry["predictions"] = [prediction._asdict() for prediction in outcome.predictions]
        else:
            entry["error"] = outcome.error
        results.append(entry)
    print_json({"model": engine.path, "image_size": list(image_size), "results": results})


def _print_table(outcomes: Sequence[Outcome]) -> None:
    rows = table(None, "file", "label", "probability", right=["probability"])
    for outcome in outcomes:
        for rank, (label, probability) in enumerate(outcome.predictions):
            name = outcome.file if rank == 0 or not sys.stdout.isatty() else ""
            add_row(rows, name, label, f"{probability:.4f}", style="bold" if rank == 0 else None)
    if rows.row_count:
        show(rows)


@contextmanager
def _progress_bar(images: int) -> Iterator[Callable[[int], object]]:
    """A bar on stderr; nothing for a few images or where stderr is no terminal."""
    if images < _MIN_IMAGES_FOR_BAR or not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("classifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=images)
        yield lambda count: bar.advance(task, count)

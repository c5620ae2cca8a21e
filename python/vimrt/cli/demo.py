"""`vimrt demo`: the trained example, from checkpoint to predictions."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from ..engine import Engine
from ..export import export_checkpoint
from . import CommandError
from .options import Subparsers, add_command, add_json
from .output import add_row, memory, print_json, printable, show, table

# In the example's folder; _RECIPE holds the options of export_checkpoint that no tensor of the checkpoint tells.
_CHECKPOINT, _RECIPE, _LABELS, _IMAGES = "vim_fashion_mnist.safetensors", "export.json", "labels.txt", "images"
_BAR_WIDTH = 20

_EXAMPLES = """\
  vimrt demo
  vimrt demo --folder ~/vimrt/examples/fashion_mnist --output fashion.vimrt
"""


class Guess(NamedTuple):
    """One image: the class its file name tells, and the most probable class with its probability."""

    file: Path
    truth: str
    label: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the model sees what is shown."""
        return self.truth == self.label


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt demo` to the command line."""
    parser = add_command(
        subparsers,
        "demo",
        summary="classify the example's images with its trained model",
        description="Exports the small Vision Mamba that examples/fashion_mnist trained, and classifies the images\n"
        "beside it. Run it in a clone of the repository, or name the example's folder.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("examples/fashion_mnist"),
        help="the example's folder (default: examples/fashion_mnist)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the .vimrt file here")
    add_json(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns 0."""
    checkpoint, images = _find(args.folder)
    with ExitStack() as stack:
        output = args.output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "vim_fashion_mnist.vimrt"
        recipe = json.loads((args.folder / _RECIPE).read_text())
        report = export_checkpoint(checkpoint, output, labels=args.folder / _LABELS, **recipe)
        engine = Engine(output)
        start = time.perf_counter()
        guesses = [_classify(engine, image) for image in images]
        seconds = time.perf_counter() - start
    if args.json:
        print_json([guess._asdict() | {"file": str(guess.file), "right": guess.right} for guess in guesses])
        return 0
    if args.output is not None:
        show(f"exported {report.source} to {output}, {memory(report.size)}")
    _print_guesses(guesses)
    right = sum(guess.right for guess in guesses)
    show(f"{right} of {len(guesses)} right, in {seconds * 1e3:.0f} ms on {engine.backend}")
    return 0


def _find(folder: Path) -> tuple[Path, list[Path]]:
    """The example's checkpoint and images. Raises CommandError where they are not."""
    checkpoint, images = folder / _CHECKPOINT, sorted((folder / _IMAGES).glob("*.png"))
    for needed in (checkpoint, folder / _RECIPE, folder / _LABELS):
        if not needed.is_file():
            raise CommandError(
                f"{needed}: there is no such file; run `vimrt demo` in a clone of the vimrt repository, "
                "or name its examples/fashion_mnist with --folder"
            )
    if not images:
        raise CommandError(f"{folder / _IMAGES}: has no .png images; restore the folder from the repository")
    return checkpoint, images


def _classify(engine: Engine, image: Path) -> Guess:
    """The model's guess. The file name begins with the class's number: 03_dress.png."""
    number = image.name.partition("_")[0]
    if not number.isdecimal() or int(number) >= len(engine.labels):
        raise CommandError(f"{image}: the name does not begin with a class's number, as 03_dress.png does")
    label, probability = engine.classify(image, top_k=1)[0]
    return Guess(image, engine.labels[int(number)], label, probability)


def _print_guesses(guesses: Sequence[Guess]) -> None:
    rows = table(None, "image", "shows", "recognised as", "probability", "", right=["probability"])
    for guess in guesses:
        colour = "green" if guess.right else "red"
        label = Text(printable(guess.label), style=colour)
        add_row(rows, guess.file.name, guess.truth, label, f"{guess.probability:.3f}", _bar(guess.probability, colour))
    show(rows)


def _bar(probability: float, colour: str) -> Text:
    filled = round(probability * _BAR_WIDTH)
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    return Text(block * filled, style=colour)

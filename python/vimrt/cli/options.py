"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

# One definition for all commands of what a size looks like.
from ..export.cli import parse_image_size

if TYPE_CHECKING:
    from ..engine import Engine

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

__all__ = [
    "Subparsers",
    "add_command",
    "add_engine_options",
    "add_image_size",
    "add_json",
    "load_engine",
    "parse_image_size",
    "positive",
]

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def positive(text: str) -> int:
    """A whole number above zero. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def memory_size(text: str) -> int:
    """Bytes from "800M", "2GiB" or "1000000"; the units are binary. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; give bytes, or a unit: 800M, 2G")
    return size


def add_command(
    subparsers: Subparsers, name: str, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Adds a command whose help shows `description` and `examples` as they are written."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL, --device, --threads and --max-memory, which load_engine() reads."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .vimrt file")
    group = parser.add_argument_group("engine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all that there are)")
    group.add_argument(
        "--max-memory", type=memory_size, metavar="SIZE", help="limit of activation memory, such as 800M or 2G"
    )


def add_image_size(parser: argparse.ArgumentParser) -> None:
    """Adds --image-size, a pair of rows and columns or None."""
    parser.add_argument(
        "--image-size", type=parse_image_size, metavar="N|HxW", help="in pixels (default: the model's own)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")


def load_engine(args: argparse.Namespace) -> Engine:
    """The engine that the options of add_engine_options() ask for."""
    from ..engine import Engine

    return Engine(args.model, device=args.device, threads=args.threads, max_memory=args.max_memory)

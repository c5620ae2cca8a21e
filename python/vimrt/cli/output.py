"""What commands print: tables for people, JSON for programs, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

# Beyond any table's: what is piped or redirected is neither wrapped nor cut.
_UNLIMITED_WIDTH = 100_000


class _PipeConsole(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is. On a terminal it has that terminal's width and colours."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED_WIDTH
    return _PipeConsole(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(title: str | None, *columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; the columns named in `right` hold numbers. Ruled on a terminal, plain columns elsewhere."""
    ruled = box.SIMPLE_HEAD if sys.stdout.isatty() else None
    result = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        box=ruled,
        pad_edge=False,
        padding=(0, 2, 0, 0) if ruled is None else (0, 1),
    )
    numbers = set(right)
    for column in columns:
        result.add_column(Text(column), justify="right" if column in numbers else "left", overflow="fold")
    return result


def add_row(to: Table, *cells: object, style: str | None = None) -> None:
    """Adds a row; what is neither text nor a Rich renderable is printed by str()."""
    to.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in cells), style=style)


def show(*renderables: RenderableType) -> None:
    """Prints to stdout."""
    out = console()
    for renderable in renderables:
        out.print(renderable, soft_wrap=isinstance(renderable, str))


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def error_line(message: str) -> None:
    """Prints `vimrt: error: MESSAGE` to stderr, for failures that do not end the command."""
    print(f"vimrt: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text from a file, without what could move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def memory(size: int) -> str:
    """An amount of memory for people: "57.6 MiB"."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def size_text(size: Iterable[int]) -> str:
    """Rows and columns for people: "512x768"."""
    return "x".join(str(side) for side in size)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that appears, or replaces another, only when it is complete. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise

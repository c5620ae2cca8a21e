"""Compares a checkpoint's tensors with the model they should make: one error that lists every difference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .config import VimConfig, expected_tensors
from .errors import ExportError
from .tensor import Tensor

#: Lines for each kind of difference, before the rest is only counted.
MAX_LINES = 20

_BLOCK = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class Difference:
    """One tensor that is not as expected: its name and what is to be said of it, such as shapes."""

    name: str
    detail: str


def check_tensors(file: str, tensors: Mapping[str, Tensor], config: VimConfig) -> None:
    """Raises ExportError, listing all missing, unexpected and misshapen tensors, unless `tensors` are `config`'s."""
    expected = expected_tensors(config)
    differences = {
        "missing": [Difference(name, _shape(shape)) for name, shape in expected.items() if name not in tensors],
        "unexpected": [
            Difference(name, _shape(tensor.shape)) for name, tensor in tensors.items() if name not in expected
        ],
        "misshapen": [
            Difference(name, f"is {_shape(tensors[name].shape)}, expected {_shape(shape)}")
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ],
        "not floating-point": [
            Difference(name, f"is {tensors[name].dtype}, expected F16, BF16, F32 or F64")
            for name in expected
            if name in tensors and tensors[name].data is None
        ],
    }
    raise_differences(f"{file}: does not fit the model recognised from it, {_describe(config)}", differences)


def raise_differences(statement: str, differences: Mapping[str, list[Difference]]) -> None:
    """Raises ExportError with `statement` and a line for each difference, under its kind; does nothing without any.

    Differences that repeat over blocks share a line: "layers.0..23.mixer.D_b".
    """
    lines = [line for kind, found in differences.items() for line in _lines(kind, found)]
    if lines:
        raise ExportError("\n".join([f"{statement}:", *lines]))


def _lines(kind: str, differences: Iterable[Difference]) -> list[str]:
    blocks: dict[tuple[str, str, str], list[int]] = {}
    for difference in differences:
        match = _BLOCK.fullmatch(difference.name)
        prefix, rest = ("layers.", f".{match[2]}") if match else ("", difference.name)
        blocks.setdefault((prefix, rest, difference.detail), []).extend([int(match[1])] if match else [])
    lines = [
        f"  {kind}: {_printable(prefix + _ranges(indices) + rest)} {detail}"
        for (prefix, rest, detail), indices in blocks.items()
    ]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"  {kind}: and {len(lines) - MAX_LINES} more"]
    return lines


def _ranges(indices: list[int]) -> str:
    """Block numbers in short: "0..23", "0..4,7", "3"."""
    spans: list[tuple[int, int]] = []
    for index in sorted(indices):
        if spans and spans[-1][1] == index - 1:
            spans[-1] = (spans[-1][0], index)
        else:
            spans.append((index, index))
    texts = [f"{first}..{last}" if last > first else f"{first}" for first, last in spans]
    return ",".join(texts[:8]) + (",..." if len(texts) > 8 else "")


def _printable(name: str) -> str:
    """A name from a file, without what could move a terminal's cursor."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(size) for size in shape)})"


def _describe(config: VimConfig) -> str:
    return (
        f"D {config.d_model}, E {config.d_inner}, N {config.d_state}, R {config.dt_rank}, {config.depth} blocks, "
        f"mixer {config.mixer}, class token {config.class_token}, {config.grid[0]}x{config.grid[1]} patches"
    )

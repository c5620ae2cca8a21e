"""`vimrt plan MODEL`: how much memory activations take, and where each lies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..plan_svg import plan_svg
from .options import Subparsers, add_command, add_engine_options, add_image_size, add_json, load_engine, positive
from .output import add_row, memory, print_json, show, size_text, table, write_atomically

_LARGEST_SHOWN = 8

_EXAMPLES = """\
  vimrt plan vim_s.vimrt
  vimrt plan vim_s.vimrt --batch 8 --image-size 1248 --svg plan.svg
  vimrt plan vim_s.vimrt --image-size 512x768 --json
"""


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt plan` to the command line."""
    parser = add_command(
        subparsers,
        "plan",
        summary="show how activations share memory",
        description="Plans the memory of a run without running it: the arena's size, the bound that no plan can be\n"
        "below, and what every buffer on its own memory would take.",
        examples=_EXAMPLES,
    )
    add_engine_options(parser)
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="number of images (default: 1)")
    add_image_size(parser)
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the arena: offset against step")
    add_json(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns 0."""
    engine = load_engine(args)
    size = args.image_size or engine.image_size
    program = engine.program(args.batch, size)
    if args.svg is not None:
        title = f"{args.model.name}, batch {args.batch}, {size_text(size)}, {engine.device}"
        write_atomically(args.svg, plan_svg(program, title).encode())
    summary = summarise(program)
    if args.json:
        print_json({"model": engine.path, "batch": args.batch, "image_size": list(size)} | summary | program)
        return 0
    _print_plan(summary, f"Activations of {args.model.name}, batch {args.batch}, {size_text(size)}")
    if args.svg is not None:
        show(f"drawn in {args.svg}")
    return 0


def summarise(program: dict[str, Any]) -> dict[str, Any]:
    """The plan in figures, all bytes: "unplanned" is the arena's buffers laid end to end, "ratio" peak to bound."""
    arena = [buffer for buffer in program["buffers"] if buffer["offset"] >= 0]
    bound = program["lower_bound"]
    return {
        "peak": program["peak"],
        "lower_bound": bound,
        "ratio": program["peak"] / bound if bound else 1.0,
        "unplanned": sum(buffer["size"] for buffer in arena),
        "arena_buffers": len(arena),
        "largest": sorted(arena, key=lambda buffer: -buffer["size"])[:_LARGEST_SHOWN],
        "step_count": len(program["steps"]),
    }


def _print_plan(summary: dict[str, Any], title: str) -> None:
    figures = table(title, "figure", "value", "", right=["value"])
    add_row(figures, "peak", memory(summary["peak"]), "the arena that a run works in")
    add_row(figures, "lower bound", memory(summary["lower_bound"]), "most bytes alive at one step")
    add_row(figures, "ratio", f"{summary['ratio']:.4f}", "peak to lower bound; 1 is the best there can be")
    saved = summary["unplanned"] / summary["peak"] if summary["peak"] else 1.0
    add_row(figures, "unplanned", memory(summary["unplanned"]), f"every buffer on memory of its own: {saved:.1f} x")
    add_row(figures, "buffers", summary["arena_buffers"], f"in {summary['step_count']} steps")
    largest = table("\nLargest buffers", "name", "size", "steps", "offset", right=["size", "steps", "offset"])
    for buffer in summary["largest"]:
        steps = f"{buffer['begin']}..{buffer['end'] - 1}"
        add_row(largest, buffer["name"], memory(buffer["size"]), steps, memory(buffer["offset"]))
    show(figures, largest)

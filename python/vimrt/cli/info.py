"""`vimrt info MODEL`: what a .vimrt file says of itself, and the steps that run it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..engine import Engine
from .options import Subparsers, add_command, add_engine_options, add_image_size, add_json, load_engine, positive
from .output import add_row, memory, print_json, show, size_text, table

_EXAMPLES = """\
  vimrt info vim_s.vimrt
  vimrt info vim_s.vimrt --graph --weights
  vimrt info vim_s.vimrt --program --batch 8 --image-size 512x768
  vimrt info vim_s.vimrt --json | jq .preprocessing
"""

# Of a Vim with 24 blocks, by its width D (arXiv 2401.09417, section 3.4).
_VARIANTS = {192: "Vim-Ti", 384: "Vim-S", 768: "Vim-B"}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Adds `vimrt info` to the command line."""
    parser = add_command(
        subparsers,
        "info",
        summary="show what a .vimrt file holds and which steps run",
        description="Shows a model's parameters, input, outputs, preprocessing, labels and provenance.",
        examples=_EXAMPLES,
    )
    add_engine_options(parser)
    parser.add_argument("--graph", action="store_true", help="list the nodes, as the file has them")
    parser.add_argument("--weights", action="store_true", help="list the tensors")
    parser.add_argument("--program", action="store_true", help="list the steps that really run, after fusion")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images, for --program (default: 1)")
    add_image_size(parser)
    add_json(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns 0."""
    engine = load_engine(args)
    program = engine.program(args.batch, args.image_size) if args.program else None
    if args.json:
        print_json(_document(engine, args, program))
        return 0
    _print_summary(engine, args)
    if args.weights:
        _print_weights(engine)
    if args.graph:
        _print_graph(engine)
    if program is not None:
        rows, columns = args.image_size or engine.image_size
        _print_program(program, f"Program on {engine.backend} for batch {args.batch}, {rows}x{columns}")
    return 0


def described(engine: Engine, key: str) -> Any:
    """A part of the file's metadata that is JSON; None where it is left out or no JSON, which the format allows."""
    try:
        return json.loads(engine.info["metadata"][key])
    except (KeyError, ValueError):
        return None


def _document(engine: Engine, args: argparse.Namespace, program: Mapping[str, Any] | None) -> dict[str, Any]:
    info, graph = engine.info, described(engine, "graph")
    document = {
        "file": engine.path,
        "bytes": args.model.stat().st_size,
        "format_version": info["format_version"],
        "parameters": info["parameters"],
        "weight_bytes": info["weight_bytes"],
        "parameters_by_dtype": _parameters_by_dtype(engine),
        "inputs": graph["inputs"],
        "outputs": engine.outputs,
        "preprocessing": info["preprocessing"],
        "labels": engine.labels,
        "model": described(engine, "model"),
        "provenance": described(engine, "provenance"),
        "backend": engine.backend,
    }
    if args.weights:
        document["weights"] = info["weights"]
    if args.graph:
        document["graph"] = graph
    if program is not None:
        document["program"] = program
    return document


def _print_summary(engine: Engine, args: argparse.Namespace) -> None:
    info = engine.info
    rows = table(None, "property", "value")
    add_row(rows, "file", engine.path)
    add_row(rows, "size", f"{memory(args.model.stat().st_size)}, format version {info['format_version']}")
    by_dtype = ", ".join(f"{count / 1e6:.2f} M {dtype}" for dtype, count in _parameters_by_dtype(engine).items())
    add_row(rows, "parameters", f"{info['parameters'] / 1e6:.2f} M ({by_dtype})")
    add_row(rows, "model", _model(engine))
    for value in described(engine, "graph")["inputs"]:
        add_row(rows, "input", f"{value['name']} {value['dtype']} ({', '.join(map(str, value['shape']))})")
    add_row(rows, "outputs", ", ".join(engine.outputs))
    add_row(rows, "preprocessing", _preprocessing(info["preprocessing"]))
    add_row(rows, "labels", _labels(engine.labels))
    add_row(rows, "provenance", _provenance(engine))
    add_row(rows, "runs on", engine.backend)
    show(rows)


def _parameters_by_dtype(engine: Engine) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for weight in engine.info["weights"]:
        counts[weight["dtype"]] += prod(weight["shape"])
    return dict(counts.most_common())


def _model(engine: Engine) -> str:
    model = described(engine, "model")
    config = model.get("config") if isinstance(model, dict) else None
    if not isinstance(config, dict):
        return "not described in the file"
    name = _VARIANTS.get(config.get("d_model", 0), "Vim") if config.get("depth") == 24 else "Vim"
    described_as = (
        f"D {config.get('d_model')}, E {config.get('d_inner')}, N {config.get('d_state')}, "
        f"{config.get('depth')} blocks, mixer {config.get('mixer')}, class token {config.get('class_token')}, "
        f"pool {config.get('pool')}, {config.get('classes')} classes"
    )
    return f"{name}: {described_as}"


def _preprocessing(recipe: Mapping[str, Any]) -> str:
    mean, std = (", ".join(f"{value:g}" for value in recipe[name]) for name in ("mean", "std"))
    return f"to {size_text(recipe['image_size'])}, crop {recipe['crop']:g}, mean ({mean}), std ({std})"


def _labels(labels: list[str]) -> str:
    if not labels:
        return "none"
    shown = ", ".join(labels[:4])
    return f"{len(labels)}: {shown}, ..." if len(labels) > 4 else f"{len(labels)}: {shown}"


def _provenance(engine: Engine) -> str:
    origin = described(engine, "provenance")
    if not isinstance(origin, dict):
        return "not described in the file"
    return f"{origin.get('source')}, SHA-256 {origin.get('source_sha256')}, by {origin.get('exporter')}"


def _print_weights(engine: Engine) -> None:
    rows = table("\nWeights", "name", "dtype", "shape")
    for weight in engine.info["weights"]:
        add_row(rows, weight["name"], weight["dtype"], size_text(weight["shape"]))
    show(rows)


def _print_graph(engine: Engine) -> None:
    rows = table("\nGraph", "op", "name", "inputs", "outputs")
    for node in engine.info["nodes"]:
        add_row(rows, node["op"], node["name"], ", ".join(node["inputs"]), ", ".join(node["outputs"]))
    show(rows)


def _print_program(program: Mapping[str, Any], title: str) -> None:
    buffers = program["buffers"]
    rows = table(f"\n{title}", "step", "name", "reads", "writes", "arena in use", right=["step", "arena in use"])
    for index, step in enumerate(program["steps"]):
        reads, writes = (_names(buffers, step[role]) for role in ("reads", "writes"))
        live = sum(b["size"] for b in buffers if b["offset"] >= 0 and b["begin"] <= index < b["end"])
        add_row(rows, index, step["name"], reads, writes, memory(live))
    arena = sum(buffer["offset"] >= 0 for buffer in buffers)
    show(
        rows,
        f"{len(program['steps'])} steps; arena of {memory(program['peak'])} for {arena} buffers "
        f"(lower bound {memory(program['lower_bound'])})",
    )


def _names(buffers: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> str:
    """Each buffer once: a step that reads two parts of one buffer names it twice."""
    return ", ".join(dict.fromkeys(buffers[index]["name"] for index in indices))

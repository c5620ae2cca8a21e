"""The targets on an H100, measured: Vim-Ti, -S and -B in fp16 beside DeiT at its best, at many sizes and batches.

    python bench/gpu.py --quick                          DeiT from CUDA graphs alone: some minutes
    python bench/gpu.py --quick --compile tiny:1248:8    with torch.compile as well for these rows
    python bench/gpu.py                                  with torch.compile for every row: a minute more for each
    python bench/gpu.py --resume                         only what the results file does not have yet

A row is SIZE:SIDE:BATCH. Results are written after each one, to bench/results/gpu_<card>.json, and the steps' times of
some rows to bench/results/profile_<card>.json. Beside them stand the authors' figures, as measured earlier on an H100:
bench/results/authors_h100.json. Weights are random, of a trained model's scale; the time does not depend on them. Exits
with 1 where a target is missed or a row fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vimrt.bench.machine import describe_machine
from vimrt.bench.profile import profile_run
from vimrt.bench.report import Settings
from vimrt.bench.runner import load_engine, run_benchmark
from vimrt.bench.vim_torch import SIZES
from vimrt.cli.output import write_atomically
from vimrt.export import export_checkpoint
from vimrt.export.reference import random_state_dict

RESULTS = Path(__file__).parent / "results"
MIB = 2**20


class Row(NamedTuple):
    """A model's size, the image's side in pixels and the batch."""

    size: str
    side: int
    batch: int

    def __str__(self) -> str:
        return f"{self.size}:{self.side}:{self.batch}"


@dataclass(frozen=True)
class Target:
    """Times in ms and activation memory in MiB: those that must be reached and those that are aimed at."""

    row: Row
    ms: float
    aim_ms: float
    mib: float | None = None
    aim_mib: float | None = None


TARGETS = (
    Target(Row("tiny", 1248, 8), 5.65, 4.04, 28.5),
    Target(Row("tiny", 1248, 1), 1.0, 0.87),
    Target(Row("small", 1248, 8), 12.8, 10.5, 57),
    Target(Row("base", 1248, 1), 4.9, 3.4),
    Target(Row("tiny", 224, 1), 0.35, 0.22),
    Target(Row("tiny", 224, 128), 4.0, 2.55),
    Target(Row("small", 224, 128), 8.0, 5.23),
    Target(Row("base", 224, 128), 17, 12.9),
    Target(Row("base", 1248, 8), 34, 28, 113),
    Target(Row("tiny", 4096, 1), 10.7, 7.6, 288, 144),
)
#: The smallest side from which on Ti, with a batch that fills the card, beats DeiT: must be, and should be.
CROSSING, CROSSING_AIM = 512, 256
#: Those batches. The plot draws them too. Where a scan takes few turns they are full ones, of 44 images on an H100, or
#: of 22, of eight with trios (docs/performance.md, "Rounds").
FILLING = tuple(
    Row("tiny", side, batch)
    for side, batch in (
        *((224, 128), (256, 128), (384, 64), (512, 44), (640, 44), (704, 44), (768, 44), (832, 44)),
        *((896, 44), (1024, 22), (1248, 8), (2048, 4), (3072, 2), (4096, 1)),
    )
)
#: Between single images and full cards: a few images at a time, or one larger one.
SERVED = (
    *(Row("tiny", 224, batch) for batch in (4, 16)),
    *(Row("small", 224, batch) for batch in (2, 6)),
    *(Row("base", 224, batch) for batch in (1, 3)),
    *(Row("tiny", side, 1) for side in (384, 512, 768, 1024)),
)
PROFILED = (*(target.row for target in TARGETS), Row("small", 1248, 1))


def authors_rows() -> dict[Row, dict[str, Any]]:
    """What was measured earlier, by row."""
    rows = json.loads((RESULTS / "authors_h100.json").read_text())["rows"]
    return {Row(row["size"], row["side"], row["batch"]): row for row in rows}


def all_rows() -> list[Row]:
    """Every row that anything is asked of, the targets first; a run that is cut off then has what matters most."""
    return list(dict.fromkeys((*(target.row for target in TARGETS), *authors_rows(), *FILLING, *SERVED)))


def row_of(result: Mapping[str, Any]) -> Row:
    """The row of one of the document's results."""
    return Row(result["size"], result["image_size"][0], result["batch"])


class Results:
    """The document that grows by one result at a time, in a file."""

    def __init__(self, path: Path, keep: bool) -> None:
        self.path = path
        self.document: dict[str, Any] = {"results": []}
        if keep and path.exists():
            self.document = json.loads(path.read_text())

    def __contains__(self, row: Row) -> bool:
        return any(row_of(result) == row and "error" not in result for result in self.document["results"])

    def add(self, row: Row, result: Mapping[str, Any], **about: Any) -> None:
        """Puts a row's result in the place of a former one; `about` is known of the whole run."""
        order = list(SIZES)
        kept = [other for other in self.document["results"] if row_of(other) != row]
        kept.append({"size": row.size, "image_size": [row.side, row.side], "batch": row.batch} | dict(result))
        kept.sort(key=lambda other: (order.index(other["size"]), *row_of(other)[1:]))
        self.document = {**self.document, **about, "results": kept}
        write_atomically(self.path, (json.dumps(self.document, indent=1) + "\n").encode())


def measure(
    row: Row, settings: Settings, results: Results, rates: Mapping[str, Any] | None, commit: str | None
) -> Mapping[str, Any] | None:
    """Measures one row and keeps it, or why it failed; returns the card's rates."""
    try:
        report = run_benchmark(replace(settings, cases=[((row.side, row.side), row.batch)]), progress_of(row), rates)
    except (RuntimeError, ValueError, MemoryError) as error:
        print(f"{row}: {error}", file=sys.stderr, flush=True)
        results.add(row, {"error": str(error)})
        return rates
    machine = dict(report.machine)
    machine["commit"] = commit or machine["commit"]
    entry = report.cases[0].to_dict() | {"commit": machine["commit"], "date": machine["date"]}
    results.add(row, entry, backend=report.backend, machine=machine, rates=dict(report.rates or {}))
    return report.rates


def profile(
    row: Row, settings: Settings, rates: Mapping[str, Any] | None, results: Results, commit: str | None
) -> None:
    """Times the steps of one row and keeps them."""
    progress_of(row)("profiling")
    try:
        document = profile_run(load_engine(settings), (row.side, row.side), row.batch, rates).to_dict()
    except (RuntimeError, ValueError, MemoryError) as error:
        print(f"{row}: profiling: {error}", file=sys.stderr, flush=True)
        return
    machine = describe_machine()
    entry = {name: document[name] for name in ("images", "seconds", "kinds", "steps")}
    entry |= {"commit": commit or machine["commit"], "date": machine["date"]}
    results.add(row, entry, backend=document["backend"], rates=document["rates"])


def progress_of(row: Row) -> Any:
    return lambda text: print(f"{row}: {text}", file=sys.stderr, flush=True)


def verdicts(document: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """Whether each target that was measured is met, and the figures."""
    results = {row_of(result): result for result in document["results"]}
    yield from ((False, f"{row}: failed: {result['error']}") for row, result in results.items() if "error" in result)
    results = {row: result for row, result in results.items() if "error" not in result}
    for target in TARGETS:
        if target.row in results:
            yield from _target_verdicts(target, results[target.row])
    for row, earlier in authors_rows().items():
        if row in results:
            own = 1e3 * results[row]["runtimes"]["vimrt"]["seconds"]
            factor = earlier["authors_ms"] / own
            yield factor > 1, f"{row}: {own:.3f} ms, {factor:.2f} x as fast as the authors' code"
    for row, result in results.items():
        ratio = result["memory_ratio"].get("deit")
        if row.side == 1248 and ratio is not None:
            yield ratio < 1, f"{row}: activations {ratio:.3f} of DeiT's"
    yield from _crossing_verdict(results)


def _target_verdicts(target: Target, result: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    own = result["runtimes"]["vimrt"]
    ms, speedup = 1e3 * own["seconds"], result["speedup"].get("deit")
    beside = "" if speedup is None else f", {speedup:.2f} x as fast as DeiT"
    floor = f", {result['over_floor']:.2f} x the floor" if result["over_floor"] else ""
    aim = f", aim {target.aim_ms:g}{' reached' if ms <= target.aim_ms else ''}"
    yield ms <= target.ms, f"{target.row}: {ms:.3f} ms{beside}{floor}; at most {target.ms:g}{aim}"
    if target.mib is not None:
        mib = max(own["activation_bytes"], own["driver_bytes"] or 0) / MIB  # the plan's count and the driver's
        yield mib <= target.mib, f"{target.row}: {mib:.1f} MiB of activations; at most {target.mib:g}"


def _crossing_verdict(results: Mapping[Row, Mapping[str, Any]]) -> Iterator[tuple[bool, str]]:
    measured = [row for row in FILLING if row in results and "deit" in results[row]["speedup"]]
    if len(measured) < 2:
        return
    crossing = None
    for row in reversed(measured):
        if results[row]["speedup"]["deit"] <= 1:
            break
        crossing = row.side
    if crossing is None:
        yield False, f"Ti does not beat DeiT at {measured[-1].side}, the largest side measured"
        return
    text = f"Ti beats DeiT from a side of {crossing} on; must be {CROSSING} or less, aim {CROSSING_AIM}"
    yield crossing <= CROSSING, text


def print_table(document: Mapping[str, Any]) -> None:
    """One line for each result."""
    earlier = authors_rows()
    print(f"{'row':<16}{'ms':>9}{'img/s':>10}{'floor':>8}{'DeiT ms':>10}{'ratio':>7}{'authors':>9}", end="")
    print(f"{'MiB':>9}{'driver':>9}{'DeiT MiB':>10}{'driver':>9}")
    for result in document["results"]:
        if "error" in result:
            continue
        row, own, deit = row_of(result), result["runtimes"]["vimrt"], result["runtimes"].get("deit")
        authors = earlier.get(row, {}).get("authors_ms")
        cells = [
            f"{row!s:<16}{1e3 * own['seconds']:9.3f}{own['images_per_second']:10.1f}{result['over_floor']:7.2f}x",
            f"{1e3 * deit['seconds']:10.3f}{result['speedup']['deit']:6.2f}x" if deit else " " * 17,
            f"{1e-3 * authors / own['seconds']:8.2f}x" if authors else " " * 9,
            f"{own['activation_bytes'] / MIB:9.1f}{(own['driver_bytes'] or 0) / MIB:9.1f}",
            f"{deit['activation_bytes'] / MIB:10.1f}{(deit['driver_bytes'] or 0) / MIB:9.1f}" if deit else "",
        ]
        print("".join(cells))


def draw(document: Mapping[str, Any], path: Path) -> None:
    """The paper's two figures for Ti, with batches that fill the card."""
    from vimrt.bench.plot import Point, plot

    results = {row_of(result): result for result in document["results"] if "error" not in result}
    points = [
        Point(name, float(row.side), row.batch, one["images_per_second"], one["activation_bytes"])
        for row in FILLING
        if row in results
        for name, one in results[row]["runtimes"].items()
    ]
    where = document["machine"].get("gpu", {}).get("name", "the CPU")
    write_atomically(path, plot(points, f"Vim-Ti and DeiT-Ti, fp16, {where}", path.suffix.lstrip(".")))


def export_random(size: str, folder: Path) -> Path:
    """A model with random weights; one that is there already is taken."""
    model = folder / f"vim_{size}.vimrt"
    if not model.exists():
        print(f"exporting a random Vim-{size}", file=sys.stderr, flush=True)
        checkpoint = model.with_suffix(".pth")
        torch.save({"model": random_state_dict(SIZES[size], seed=0)}, checkpoint)
        export_checkpoint(checkpoint, model)
        checkpoint.unlink()
    return model


def parse_row(text: str) -> Row:
    size, side, batch = text.split(":")
    if size not in SIZES:
        raise ValueError(size)
    return Row(size, int(side), int(batch))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT without torch.compile")
    parser.add_argument("--compile", type=parse_row, nargs="+", default=[], metavar="ROW", help="but for these rows")
    parser.add_argument(
        "--compile-limit", type=float, default=180, metavar="SECONDS", help="for each row (default: 180)"
    )
    parser.add_argument(
        "--only", type=parse_row, nargs="+", default=[], metavar="ROW", help="these alone, beside what is there"
    )
    parser.add_argument("--resume", action="store_true", help="keep what the results file has, measure the rest")
    parser.add_argument("--no-profile", action="store_true", help="do not time the steps one by one")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: cuda)")
    parser.add_argument("--commit", help="the commit that is measured, where the source tree has no git folder")
    parser.add_argument("--models", type=Path, help="where the exported models are kept (default: nowhere)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=RESULTS, help="default: bench/results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw speed and memory: .png, .svg or .pdf")
    return parser.parse_args()


def card_of(device: str) -> str:
    """What files are named after: "h100" for an NVIDIA H100 80GB HBM3."""
    if not device.startswith("cuda"):
        return device
    words = torch.cuda.get_device_name(device).lower().replace("nvidia", "").split()
    return words[0] if words else "gpu"


def main() -> int:
    options = parse()
    card = card_of(options.device)
    keep = options.resume or bool(options.only)
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(options.output / f"gpu_{card}.json", keep)
    profiles = Results(options.output / f"profile_{card}.json", keep)
    rows: Sequence[Row] = options.only or all_rows()
    rates: Mapping[str, Any] | None = None
    with tempfile.TemporaryDirectory() as folder:
        models = options.models or Path(folder)
        models.mkdir(parents=True, exist_ok=True)
        for row in rows:
            compiled = not options.quick or row in options.compile
            if options.resume and row in results and row not in options.compile:
                continue
            settings = Settings(
                export_random(row.size, models),
                device=options.device,
                dtype="fp16" if options.device.startswith("cuda") else None,
                peers=["deit"],
                compiled=compiled,
                compile_seconds=options.compile_limit,
            )
            rates = measure(row, settings, results, rates, options.commit)
            if row in PROFILED and not options.no_profile:
                profile(row, settings, rates, profiles, options.commit)
    print_table(results.document)
    if options.plot is not None:
        draw(results.document, options.plot)
    verdict = list(verdicts(results.document))
    for met, sentence in verdict:
        print("met   " if met else "MISSED", sentence)
    return 0 if all(met for met, _ in verdict) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The targets on the CPU, measured: Vim against DeiT in PyTorch, time against tokens, resident memory against the plan.

    python bench/cpu.py                 Vim-Ti, about ten minutes on two cores
    python bench/cpu.py --size small    another size
    python bench/cpu.py --quick         without torch.compile for DeiT, and few runs

Weights are random, of a trained model's scale; the time does not depend on them. Exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from vimrt.bench.report import Case, Report, Settings
from vimrt.bench.runner import run_benchmark
from vimrt.bench.vim_torch import SIZES
from vimrt.cli.bench_tables import print_report
from vimrt.export import export_checkpoint
from vimrt.export.reference import random_state_dict

# Sides in pixels; Vim in PyTorch takes too long beyond the smallest, DeiT beyond 1248.
BESIDE_ALL = (224, 224)
BESIDE_DEIT = (1248, 1248)
ALONE = ((512, 512), (1024, 1024), (2048, 2048))

#: How many times faster than DeiT, at least.
SPEEDUPS = {BESIDE_ALL: 1.0, BESIDE_DEIT: 2.8}
#: Largest time of a token over the smallest one.
LINEARITY = 1.25
#: Resident memory above weights over what the engine says it holds: activations, the loaded graph and its program.
RESIDENT = 1.10


def measure(settings: Settings) -> Report:
    """Every size in one report; the peers where they are compared."""

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    everyone = run_benchmark(replace(settings, image_sizes=[BESIDE_ALL], peers=["deit", "vim"]), progress)
    deit = run_benchmark(replace(settings, image_sizes=[BESIDE_DEIT], peers=["deit"]), progress, everyone.rates)
    alone = run_benchmark(replace(settings, image_sizes=ALONE), progress, everyone.rates)
    cases = sorted((*everyone.cases, *deit.cases, *alone.cases), key=lambda case: case.image_size)
    return replace(everyone, cases=cases)


def verdicts(report: Report) -> Iterator[tuple[bool, str]]:
    """Whether each target is met, and the figure."""
    for case in report.cases:
        place = f"{case.image_size[0]}x{case.image_size[1]}"
        if case.image_size in SPEEDUPS:
            target, speedup = SPEEDUPS[case.image_size], case.speedup("deit")
            yield speedup >= target, f"{place}: {speedup:.2f} x as fast as DeiT, target {target:.1f}"
        if case.resident is not None:
            ratio = case.resident["growth"] / (case.resident["planned"] + case.resident["program"])
            yield ratio <= RESIDENT, f"{place}: resident memory {ratio:.3f} of the plan, target at most {RESIDENT:.2f}"
    per_token = [_seconds_per_token(case) for case in report.cases]
    spread = max(per_token) / min(per_token)
    yield spread <= LINEARITY, f"time of a token: largest {spread:.2f} of the smallest, target at most {LINEARITY:.2f}"


def _seconds_per_token(case: Case) -> float:
    # The scan's exponentials are a constant number for each token.
    return case.runtimes["vimrt"].timing.median / case.work.exponentials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--threads", type=int, help="CPU threads of both (default: all that there are)")
    parser.add_argument("--quick", action="store_true", help="fewer runs, DeiT without torch.compile")
    parser.add_argument("--output", type=Path, help="write the report as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / f"vim_{options.size}.pth"
        torch.save({"model": random_state_dict(SIZES[options.size], seed=0)}, checkpoint)
        model = export_checkpoint(checkpoint, checkpoint.with_suffix(".vimrt")).output
        rounds = 5 if options.quick else 20
        settings = Settings(model, device="cpu", threads=options.threads, rounds=rounds, resident=True)
        report = measure(replace(settings, compiled=not options.quick))
    if options.output is not None:
        options.output.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    print_report(report)
    results = list(verdicts(report))
    for met, sentence in results:
        print("met   " if met else "MISSED", sentence)
    return 0 if all(met for met, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())

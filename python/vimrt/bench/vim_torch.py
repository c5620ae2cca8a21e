"""Vim in plain PyTorch on the CPU: the reference model that parity is tested against, timed.

It is the straightforward implementation, a sequential scan over tokens, not a tuned one; what it shows is what a
user without the authors' CUDA kernels has today. Weights are random.

    python -m vimrt.bench.vim_torch --size tiny --image-size 224 --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..export.config import VIM_BASE, VIM_SMALL, VIM_TINY, VimConfig
from ..export.reference import VisionMamba, random_images, random_state_dict
from .timing import interleave

SIZES = {"tiny": VIM_TINY, "small": VIM_SMALL, "base": VIM_BASE}


def vim(
    config: VimConfig, image_size: int | tuple[int, int] = 224, batch: int = 1, threads: int | None = None
) -> Callable[[], Tensor]:
    """A function of no arguments that runs Vim in fp32 and inference mode on random pixels: logits (batch, classes).

    `image_size` is a side or (rows, columns) in pixels; positions are resampled in every run, as the reference does.
    `threads` sets PyTorch's number of threads for the process and stays set. Raises ValueError for an image smaller
    than a patch.
    """
    rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size
    config.grid_of(rows, columns)
    if threads is not None:
        torch.set_num_threads(threads)
    model = VisionMamba.from_state_dict(config, random_state_dict(config, seed=0))
    pixels = random_images(batch, rows, columns, seed=0)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(pixels)  # type: ignore[no-any-return]

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vimrt.bench.vim_torch", description="Time Vim's PyTorch reference."
    )
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[224], metavar="PIXELS", help="side, or rows columns"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--rounds", type=int, default=10, help="timed runs; the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    if len(options.image_size) > 2:
        parser.error("--image-size takes one side or rows and columns")

    rows, columns = options.image_size[0], options.image_size[-1]
    run = vim(SIZES[options.size], (rows, columns), options.batch, options.threads)
    seconds = interleave({"vim": run}, options.rounds)["vim"].median
    if options.json:
        report = {
            "model": f"Vim-{options.size}",
            "image_size": [rows, columns],
            "batch": options.batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "milliseconds": seconds * 1e3,
        }
        print(json.dumps(report))
    else:
        threads = torch.get_num_threads()
        print(
            f"Vim-{options.size} in PyTorch, {rows}x{columns}, batch {options.batch}, {threads} threads: "
            f"{seconds * 1e3:.1f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

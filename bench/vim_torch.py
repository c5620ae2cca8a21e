"""Vim in plain PyTorch on the CPU: the reference model that parity is tested against, timed.

It is the straightforward implementation, a sequential scan over tokens, not a tuned one; what it shows is what a
user without the authors' CUDA kernels has today. Weights are random.

    python bench/vim_torch.py --size tiny --image-size 224 --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import torch
from deit import interleaved_medians
from torch import Tensor

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
PATCH = 16


def vim(
    size: str, image_size: int | tuple[int, int] = 224, batch: int = 1, threads: int | None = None
) -> Callable[[], Tensor]:
    """A function of no arguments that runs Vim in fp32 and inference mode on random pixels: logits (batch, classes).

    `size` is "tiny", "small" or "base"; `image_size` a side or (rows, columns) in pixels, with patches of 16
    side by side; `threads` sets PyTorch's number of threads for the process and stays set. Needs vimrt's `export`
    extra. Raises ValueError for an unknown size or an image smaller than a patch.
    """
    from vimrt.export.config import VimConfig
    from vimrt.export.reference import VisionMamba, random_images, random_state_dict

    if size not in WIDTHS:
        raise ValueError(f'size is "{size}"; expected one of {", ".join(WIDTHS)}')
    rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(rows, columns) < PATCH:
        raise ValueError(f"image_size is {rows}x{columns}; Vim's patches need at least {PATCH} pixels on each side")
    if threads is not None:
        torch.set_num_threads(threads)
    config = VimConfig.of_width(WIDTHS[size], grid=(rows // PATCH, columns // PATCH))
    model = VisionMamba.from_state_dict(config, random_state_dict(config, seed=0))
    pixels = random_images(batch, rows, columns, seed=0)

    @torch.inference_mode()
    def run() -> Tensor:
        logits: Tensor = model(pixels)
        return logits

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time Vim's PyTorch reference.")
    parser.add_argument("--size", choices=list(WIDTHS), default="tiny")
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[224], metavar="PIXELS", help="side, or rows columns"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs; the median counts")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    if len(options.image_size) > 2:
        parser.error("--image-size takes one side or rows and columns")

    rows, columns = options.image_size[0], options.image_size[-1]
    run = vim(options.size, (rows, columns), options.batch, options.threads)
    seconds = interleaved_medians({"vim": run}, options.repeats)["vim"]
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

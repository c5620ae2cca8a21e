"""DeiT at its best in PyTorch on the CPU: the opponent that vimrt's timings are compared with.

DeiT (Touvron et al., 2021, arXiv 2012.12877) is a pre-norm Vision Transformer: 16x16 patches of stride 16, a class
token in front, learned positions, 12 blocks of attention and a GELU MLP of four times the width, LayerNorm with
eps 1e-6, and a linear head on the class token. Weights are random; the time does not depend on them.

    python -m vimrt.bench.deit --size tiny --image-size 224 --json

prints the median time of every way PyTorch offers to run it, and which is the fastest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .timing import interleave

PATCH = 16
HEAD_DIM = 64
MLP_RATIO = 4
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Config:
    """What tells the three sizes apart."""

    heads: int
    depth: int = 12

    @property
    def width(self) -> int:
        return self.heads * HEAD_DIM


SIZES = {"tiny": Config(heads=3), "small": Config(heads=6), "base": Config(heads=12)}


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, D) to (B, T, D), with biases on both projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with the exact (erf) GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return x


class DeiT(nn.Module):
    """Pixels (B, 3, H, W) to logits (B, classes), for the one `image_size` (rows, columns) of its positions."""

    def __init__(self, config: Config, image_size: tuple[int, int] = (224, 224), classes: int = 1000) -> None:
        super().__init__()
        if min(image_size) < PATCH:
            raise ValueError(f"image_size is {image_size}; DeiT's patches need at least {PATCH} pixels on each side")
        width = config.width
        tokens = (image_size[0] // PATCH) * (image_size[1] // PATCH) + 1
        self.patch_embed = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(pixels), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


@dataclass(frozen=True)
class Variant:
    """One way to run the same model. `options` are torch.compile's; None runs eagerly."""

    name: str
    options: dict[str, bool] | None = None
    channels_last: bool = False


VARIANTS = (
    Variant("eager"),
    Variant("eager, channels last", channels_last=True),
    Variant("compile", {}),
    Variant("compile, freezing", {"freezing": True}),
    Variant("compile, freezing, max-autotune", {"freezing": True, "max_autotune": True}),
)


@dataclass(frozen=True)
class Timed:
    """A model ready to be timed.

    `run` makes one forward pass, `variant` names how, `seconds` is its median time, and
    `all_seconds` holds the medians of every variant tried, the fastest first.
    """

    run: Callable[[], Tensor]
    variant: str
    seconds: float
    all_seconds: dict[str, float]


def prepare(model: nn.Module, pixels: Tensor, variant: Variant) -> Callable[[], Tensor]:
    """A function of no arguments that runs `model` on `pixels` in inference mode, compiled and warmed up already."""
    model.requires_grad_(False)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    if variant.options is not None:
        model.compile(dynamic=False, options=dict(variant.options))

    @torch.inference_mode()
    def run() -> Tensor:
        logits: Tensor = model(pixels)
        return logits

    with torch.inference_mode():
        run()
    return run


def best_deit(
    size: str,
    image_size: int | tuple[int, int] = 224,
    batch: int = 1,
    threads: int | None = None,
    *,
    variants: Sequence[Variant] = VARIANTS,
    rounds: int = 20,
) -> Timed:
    """The fastest way to run DeiT in fp32 with scaled_dot_product_attention on this machine.

    `size` is "tiny", "small" or "base", `image_size` a side or (rows, columns) in pixels; `threads` sets
    PyTorch's number of threads for the process and stays set. Compiling takes up to minutes. Raises ValueError for an
    unknown size, and whatever a variant raises: one that cannot run is not passed over.
    """
    if size not in SIZES:
        raise ValueError(f'size is "{size}"; expected one of {", ".join(SIZES)}')
    if threads is not None:
        torch.set_num_threads(threads)
    rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size

    torch.compiler.reset()  # past its limit of compilations per function, torch.compile runs eagerly without a word
    runs: dict[str, Callable[[], Tensor]] = {}
    for variant in variants:
        torch.manual_seed(0)
        model = DeiT(SIZES[size], (rows, columns)).eval()
        runs[variant.name] = prepare(model, torch.randn(batch, 3, rows, columns), variant)
    seconds = {name: timing.median for name, timing in interleave(runs, rounds).items()}
    ordered = dict(sorted(seconds.items(), key=lambda item: item[1]))
    fastest = next(iter(ordered))
    return Timed(runs[fastest], fastest, ordered[fastest], ordered)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time DeiT in PyTorch, each way to run it, and name the fastest.")
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument(
        "--image-size", type=int, nargs="+", default=[224], metavar="PIXELS", help="side, or rows columns"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each variant; the median counts")
    parser.add_argument("--eager", action="store_true", help="skip torch.compile")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(arguments)
    if len(options.image_size) > 2:
        parser.error("--image-size takes one side or rows and columns")

    rows, columns = options.image_size[0], options.image_size[-1]
    variants = [variant for variant in VARIANTS if variant.options is None] if options.eager else VARIANTS
    best = best_deit(
        options.size,
        (rows, columns),
        options.batch,
        options.threads,
        variants=variants,
        rounds=options.rounds,
    )
    if options.json:
        report = {
            "model": f"DeiT-{options.size}",
            "image_size": [rows, columns],
            "batch": options.batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "best": best.variant,
            "milliseconds": best.seconds * 1e3,
            "all_milliseconds": {name: value * 1e3 for name, value in best.all_seconds.items()},
        }
        print(json.dumps(report))
    else:
        print(f"DeiT-{options.size}, {rows}x{columns}, batch {options.batch}, {torch.get_num_threads()} threads")
        for name, value in best.all_seconds.items():
            print(f"  {name:<34}{value * 1e3:10.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())

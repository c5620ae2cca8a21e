"""Trains a small Vision Mamba on Fashion-MNIST and writes a checkpoint that `vimrt export` reads.

Runs on the CPU or one CUDA GPU. The checkpoint holds the tensors of the published ones by the same names, matrices in
fp16, small parameters in fp32, as safetensors: exporting it needs no PyTorch.
"""

# torch leaves Tensor.split, Tensor.backward and others without types.
# mypy: allow-untyped-calls

from __future__ import annotations

import argparse
import functools
import gzip
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from vimrt.export.config import VimConfig
from vimrt.export.reference import Block, Scan, VisionMamba, selective_scan

HERE = Path(__file__).resolve().parent
DEBIAN_DATA = Path("/usr/share/datasets/fashion-mnist")
SIZE = 28

# Of all training pixels, in units of 1/255 after division; the same for the three equal channels.
MEAN, STD = 0.2860, 0.3530

# 4x4 patches every 3 pixels: a 9x9 grid that covers 28x28 exactly and overlaps by a pixel, so edges are seen twice.
# R is 16 rather than 10: matrix products are faster with rows of a multiple of 16 bytes.
CONFIG = VimConfig.of_width(160, depth=8, dt_rank=16, patch_size=(4, 4), stride=3, grid=(9, 9), classes=10)

EXAMPLE = """examples:
  the kept checkpoint's recipe:
    python examples/fashion_mnist/train.py --device cuda --compile --graph
  a quick try, on a CPU too:
    python examples/fashion_mnist/train.py --limit 256 --epochs 1 --warmup-epochs 0.5 --output /tmp/try.safetensors
"""


@dataclass(frozen=True)
class Recipe:
    """What training is steered by; every field is an option of the command line."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    label_smoothing: float
    drop_path: float
    erasing: float
    average: float
    seed: int


def read_idx(path: Path) -> Tensor:
    """The uint8 array of a gzipped IDX file, the format in which MNIST and its kin are distributed."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise SystemExit(
            f"{path}: not found; install Debian's dataset-fashion-mnist, or name the folder with --data"
        ) from None
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes: it starts with {content[:3].hex()}, not 000008")
    axes = content[3]
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return torch.frombuffer(bytearray(content[4 + 4 * axes :]), dtype=torch.uint8).reshape(shape)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (n, 28, 28) and labels (n), uint8; `split` is "train" or "t10k"."""
    return read_idx(folder / f"{split}-images-idx3-ubyte.gz"), read_idx(folder / f"{split}-labels-idx1-ubyte.gz")


def network_input(images: Tensor) -> Tensor:
    """Gray images (batch, 28, 28) of 0 to 255 as normalised input (batch, 3, 28, 28), three equal channels."""
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1).expand(-1, 3, -1, -1)


def augment(images: Tensor, erasing: float) -> Tensor:
    """Images (batch, 28, 28) shifted by up to 2 pixels, mirrored half the time, and a share `erasing` partly erased.

    The erased rectangle covers between 2% and 30% of the image and holds uniform noise.
    """
    count, device = images.shape[0], images.device
    padded = F.pad(images, (2, 2, 2, 2))
    steps = torch.arange(SIZE, device=device)
    rows = torch.randint(0, 5, (count, 1), device=device) + steps
    columns = torch.randint(0, 5, (count, 1), device=device) + steps
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count, device=device).view(-1, 1, 1)
    moved = padded[which, rows.unsqueeze(2), columns.unsqueeze(1)]
    noise = torch.randint(0, 256, moved.shape, device=device, dtype=torch.uint8)
    return torch.where(random_rectangles(count, erasing, device), noise, moved)


def random_rectangles(count: int, rate: float, device: torch.device) -> Tensor:
    """Masks (count, 28, 28), true inside a random rectangle, for a share `rate` of them; the others are false."""
    area = SIZE * SIZE * torch.empty(count, device=device).uniform_(0.02, 0.3)
    aspect = torch.exp(torch.empty(count, device=device).uniform_(-1.2, 1.2))
    height, width = (area * aspect).sqrt().clamp(1, SIZE), (area / aspect).sqrt().clamp(1, SIZE)
    top, left = (torch.rand(count, device=device) * (SIZE - extent) for extent in (height, width))
    steps = torch.arange(SIZE, device=device) + 0.5
    inside_rows = (steps >= top.unsqueeze(1)) & (steps < (top + height).unsqueeze(1))
    inside_columns = (steps >= left.unsqueeze(1)) & (steps < (left + width).unsqueeze(1))
    chosen = torch.rand(count, 1, 1, device=device) < rate
    return inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1) & chosen


def new_model(scan: Scan, drop_path: float) -> VisionMamba:
    """The network to train: Mamba's initialisation, and stochastic depth growing to `drop_path` at the last block."""
    model = VisionMamba(CONFIG, scan)
    for index, block in enumerate(model.layers):
        mixer = cast(Block, block).mixer
        with torch.no_grad():
            mixer.out_proj.weight /= math.sqrt(CONFIG.depth)
            for name in ("dt_proj.weight", "dt_proj_b.weight"):
                mixer.get_parameter(name).uniform_(-(CONFIG.dt_rank**-0.5), CONFIG.dt_rank**-0.5)
        rate = drop_path * index / (CONFIG.depth - 1)
        if rate > 0:
            block.register_forward_hook(stochastic_depth(rate))
    nn.init.trunc_normal_(model.head.weight, std=0.02)
    nn.init.zeros_(model.head.bias)
    return model


def stochastic_depth(rate: float) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """A hook for a block that drops its output for a share `rate` of the images in training (arXiv 1603.09382)."""

    def hook(block: nn.Module, _: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, residual = output
        if block.training:
            kept = torch.rand(hidden.shape[0], 1, 1, device=hidden.device) >= rate
            hidden = hidden * (kept / (1 - rate)).to(hidden.dtype)
        return hidden, residual

    return hook


def is_small(name: str, tensor: Tensor) -> bool:
    """Whether a parameter is one of the small ones, kept in fp32 and free of weight decay."""
    return tensor.ndim < 2 or ".conv1d" in name or name.endswith("_log") or name.startswith(("cls_token", "pos_embed"))


def new_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices alone; the learning rate is a tensor, so that a CUDA graph reads it anew."""
    named = list(model.named_parameters())
    cuda = device.type == "cuda"
    decayed = {
        recipe.weight_decay: [p for name, p in named if not is_small(name, p)],
        0.0: [p for name, p in named if is_small(name, p)],
    }
    groups = [
        {"params": params, "weight_decay": decay, "lr": torch.zeros((), device=device)}
        for decay, params in decayed.items()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=cuda, capturable=cuda)


def rate_at(progress: float, warmup: float) -> float:
    """The share of the full learning rate at `progress` in 0..1: a linear rise until `warmup`, then a half cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@torch.inference_mode()
def accuracy(model: VisionMamba, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share, in 0..1, of images (n, 28, 28) whose largest logit is their label."""
    correct = 0
    for some, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        correct += int((model(network_input(some)).argmax(1) == truth).sum())
    return correct / images.shape[0]


class TrainingStep:
    """One step of training on the images at given indices: augmentation, gradient, optimizer.

    With `graph` the first steps run as they are and then one is recorded as a CUDA graph, which later steps replay:
    a step is thousands of short kernels, and launching them one by one takes longer than running them.
    """

    STEPS_BEFORE_RECORDING = 4

    def __init__(self, model: VisionMamba, images: Tensor, labels: Tensor, recipe: Recipe, graph: bool) -> None:
        self.model, self.images, self.labels, self.recipe = model, images, labels, recipe
        self.device = images.device
        self.optimizer = new_optimizer(model, recipe, self.device)
        self.chosen = torch.zeros(recipe.batch_size, dtype=torch.int64, device=self.device)
        self.total_loss = torch.zeros((), device=self.device)
        self.graph = torch.cuda.CUDAGraph() if graph else None
        self.stream = torch.cuda.Stream() if graph else None
        self.done = 0

    def __call__(self, chosen: Tensor, learning_rate: float) -> None:
        """Trains on the images at indices `chosen` (batch_size) and adds their mean loss to `total_loss`."""
        self.chosen.copy_(chosen)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)
        if self.graph is None or self.stream is None:
            self._compute()
        elif self.done < self.STEPS_BEFORE_RECORDING:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self._compute()
            torch.cuda.current_stream().wait_stream(self.stream)
        else:
            if self.done == self.STEPS_BEFORE_RECORDING:
                self.optimizer.zero_grad(set_to_none=True)
                with torch.cuda.graph(self.graph):
                    self._compute()
            self.graph.replay()
        self.done += 1

    def _compute(self) -> None:
        inputs = network_input(augment(self.images[self.chosen], self.recipe.erasing))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(inputs)
        truth = self.labels[self.chosen].long()
        loss = F.cross_entropy(logits.float(), truth, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.total_loss += loss.detach()


def train(model: VisionMamba, images: Tensor, labels: Tensor, recipe: Recipe, graph: bool) -> dict[str, Tensor]:
    """Trains in place; returns the running average of the weights, which is what generalises best."""
    steps = images.shape[0] // recipe.batch_size
    if steps == 0:
        raise SystemExit(f"{images.shape[0]} images do not fill a batch of {recipe.batch_size}; lower --batch-size")
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    step = TrainingStep(model, images, labels, recipe, graph)
    progress = Progress(recipe.epochs, steps)
    for epoch in range(recipe.epochs):
        order = torch.randperm(images.shape[0], device=images.device)
        for index, chosen in enumerate(order.split(recipe.batch_size)[:steps]):
            done = epoch * steps + index
            share = rate_at((done + 1) / (recipe.epochs * steps), recipe.warmup_epochs / recipe.epochs)
            step(chosen, recipe.learning_rate * share)
            decay = min(recipe.average, (1 + done) / (10 + done))
            get_ema_multi_avg_fn(decay)(list(average.values()), list(model.parameters()), None)
            progress.step(epoch, index)
        progress.epoch(epoch, float(step.total_loss) / steps)
        step.total_loss.zero_()
    return average


class Progress:
    """Progress on standard error: a line for each epoch, and on a terminal the step within it."""

    def __init__(self, epochs: int, steps: int) -> None:
        self.epochs, self.steps, self.start = epochs, steps, time.monotonic()
        self.live = sys.stderr.isatty()

    def step(self, epoch: int, step: int) -> None:
        if self.live:
            print(f"\repoch {epoch + 1}/{self.epochs}  step {step + 1}/{self.steps}", end="", file=sys.stderr)

    def epoch(self, epoch: int, loss: float) -> None:
        elapsed = time.monotonic() - self.start
        left = elapsed / (epoch + 1) * (self.epochs - epoch - 1)
        line = f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}  {elapsed:.1f} s, {left:.0f} s left"
        print(("\r" if self.live else "") + line, file=sys.stderr, flush=True)


def save_checkpoint(state: dict[str, Tensor], path: Path) -> None:
    """Writes the state, matrices in fp16, small parameters in fp32, and never half a file."""
    stored = {
        name: value.detach().cpu().contiguous().to(torch.float32 if is_small(name, value) else torch.float16)
        for name, value in state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    save_file(stored, unfinished)
    unfinished.replace(path)


def hardware(device: torch.device) -> str:
    """The name of what computed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def scan_for(device: torch.device) -> Scan:
    """The scan to train with: Triton's kernels on a CUDA GPU, the reference's loop elsewhere.

    The loop is run again for its gradient, because the states of all blocks at once take tens of gigabytes.
    """
    if device.type == "cuda":
        from triton_scan import triton_scan

        return triton_scan
    return functools.partial(checkpoint, selective_scan, use_reentrant=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEBIAN_DATA, help="folder of the four .gz files (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=HERE / "vim_fashion_mnist.safetensors", help="checkpoint to write"
    )
    parser.add_argument("--metrics", type=Path, help="JSON file to write (metrics.json beside the checkpoint)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks with torch.compile")
    parser.add_argument("--graph", action="store_true", help="replay each step as a CUDA graph")
    parser.add_argument("--limit", type=int, help="train and test on this many images alone, for a quick try")
    parser.add_argument("--epochs", type=int, default=52, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its highest (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="(%(default)s)")
    parser.add_argument("--warmup-epochs", type=float, default=3.0, help="epochs of rising rate (%(default)s)")
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="(%(default)s)")
    parser.add_argument("--drop-path", type=float, default=0.05, help="share of last block outputs (%(default)s)")
    parser.add_argument("--erasing", type=float, default=0.15, help="share of images partly erased (%(default)s)")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the average weights (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    recipe = Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    device = torch.device(options.device)
    if options.graph and device.type != "cuda":
        raise SystemExit(f"--graph records CUDA kernels, but the device is {device}; leave it out")
    torch.manual_seed(recipe.seed)
    train_images, train_labels = (t[: options.limit].to(device) for t in read_split(options.data, "train"))
    test_images, test_labels = (t[: options.limit].to(device) for t in read_split(options.data, "t10k"))

    model = new_model(scan_for(device), recipe.drop_path).to(device)
    if options.compile:
        for block in model.layers:
            # The method alone, so that all blocks share what is compiled; their hooks run outside it.
            block.forward = torch.compile(block.forward, dynamic=False)
    start = time.monotonic()
    average = train(model, train_images, train_labels, recipe, options.graph)
    seconds = time.monotonic() - start
    save_checkpoint(average, options.output)

    # What is reported is what was saved: the rounded weights, in the plain fp32 reference.
    saved = load_file(options.output)
    result = accuracy(VisionMamba.from_state_dict(CONFIG, saved).to(device), test_images, test_labels)
    metrics = {
        "accuracy": result,
        "test_images": test_images.shape[0],
        "parameters": sum(value.numel() for value in saved.values()),
        "train_seconds": round(seconds, 1),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "compiled": options.compile,
        "graph": options.graph,
        **{name: getattr(recipe, name) for name in Recipe.__dataclass_fields__},
    }
    path = options.metrics or options.output.with_name("metrics.json")
    path.write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{options.output}: {100 * result:.2f}% of {test_images.shape[0]} test images, {seconds:.0f} s of training")


if __name__ == "__main__":
    main()

"""What vimrt is compared with on the CPU: the same task in PyTorch, fp32, on the same cores. Needs PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..export.config import VimConfig
from . import deit, vim_torch
from .torch_memory import peak_tensor_bytes

#: DeiT of the same size, by Vim's width D (arXiv 2401.09417, table 1).
DEIT_SIZES = {192: "tiny", 384: "small", 768: "base"}

# Rounds that choose the fastest way to run DeiT; the comparison times that one again.
_TUNING_ROUNDS = 5


@dataclass(frozen=True)
class Peer:
    """A ready opponent: `run` makes one forward pass, `variant` says how.

    `activation_bytes` is what a pass holds in tensors at most; None where that is not measured.
    """

    run: Callable[[], object]
    variant: str
    activation_bytes: int | None


def deit_size(info: Mapping[str, Any]) -> str:
    """Which DeiT a model, as `Engine.info` describes it, is compared with. Raises ValueError where there is none."""
    weights = {weight["name"]: weight["shape"] for weight in info["weights"]}
    width = weights["head.weight"][1]
    if width not in DEIT_SIZES:
        raise ValueError(
            f"there is no DeiT of the model's width {width}; models of width 192, 384 and 768 are compared with "
            "DeiT-Ti, -S and -B"
        )
    return DEIT_SIZES[width]


def prepare_deit(
    info: Mapping[str, Any], batch: int, image_size: tuple[int, int], threads: int, *, compiled: bool = True
) -> Peer:
    """DeiT of the model's size, run in the fastest way PyTorch offers on this machine; `compiled` False tries fewer.

    Raises:
        ValueError: there is no DeiT of the model's width, or the image is smaller than a patch.
    """
    size = deit_size(info)
    variants = [variant for variant in deit.VARIANTS if compiled or variant.options is None]
    best = deit.best_deit(size, image_size, batch, threads, variants=variants, rounds=_TUNING_ROUNDS)
    return Peer(best.run, best.variant, peak_tensor_bytes(best.run))


def prepare_vim(info: Mapping[str, Any], batch: int, image_size: tuple[int, int], threads: int) -> Peer:
    """The model itself in plain PyTorch, with random weights.

    Raises:
        ValueError: the file does not describe its model, or the image is smaller than a patch.
    """
    try:
        config = VimConfig.from_json(json.dumps(json.loads(info["metadata"]["model"])["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{info["path"]}: does not describe its model under "model"; export it again') from error
    # Its sequential scan makes millions of tiny operations, more than the memory profiler can hold.
    return Peer(vim_torch.vim(config, image_size, batch, threads), "eager", None)

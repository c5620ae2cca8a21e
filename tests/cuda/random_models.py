"""Exports random Vim-Ti, S and B: random_models.py FOLDER writes tiny.vimrt, small.vimrt and base.vimrt there."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from vimrt.export import export_checkpoint
from vimrt.export.config import VIM_BASE, VIM_SMALL, VIM_TINY
from vimrt.export.reference import random_state_dict


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in (("tiny", VIM_TINY), ("small", VIM_SMALL), ("base", VIM_BASE)):
        checkpoint = folder / f"{name}.pth"
        torch.save({"model": random_state_dict(config, 0)}, checkpoint)
        export_checkpoint(checkpoint, folder / f"{name}.vimrt", stride=config.stride)
        checkpoint.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

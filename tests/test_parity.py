"""Every variant of the model gives the PyTorch reference's logits, in fp32 and from one exported file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import vimrt
from vimrt.export import export_checkpoint
from vimrt.export.config import (
    VIM_BASE,
    VIM_SMALL,
    VIM_SMALL_STRIDE8,
    VIM_TINY,
    VIM_TINY_STRIDE8,
    VimConfig,
)
from vimrt.export.reference import VisionMamba, random_images, random_state_dict

TOLERANCE = 1e-5  # relative L2 error of the logits


def small(**changes: object) -> VimConfig:
    """A model of Vim-Ti's proportions, small enough for many variants."""
    return VimConfig.of_width(96, depth=6, classes=50, **changes)


NO_TOKEN = {"class_token": "none", "pool": "mean"}

VARIANTS: dict[str, tuple[VimConfig, tuple[int, int], int]] = {
    # name: configuration, image size, batch
    "tiny-224": (VIM_TINY, (224, 224), 2),
    "small-224": (VIM_SMALL, (224, 224), 1),
    "base-224": (VIM_BASE, (224, 224), 1),
    "tiny-stride8": (VIM_TINY_STRIDE8, (224, 224), 1),
    "small-stride8": (VIM_SMALL_STRIDE8, (224, 224), 1),
    "tiny-512": (VIM_TINY, (512, 512), 1),
    "tiny-1248": (VIM_TINY, (1248, 1248), 1),
    "tiny-rectangular": (VIM_TINY, (160, 336), 3),
    "tiny-no-division": (dataclasses.replace(VIM_TINY, merge="sum"), (224, 224), 1),
    "tiny-v1": (dataclasses.replace(VIM_TINY, mixer="v1", merge="sum"), (224, 224), 1),
    "tiny-forward-only": (dataclasses.replace(VIM_TINY, mixer="none"), (224, 224), 1),
    "token-head": (small(class_token="head"), (224, 224), 3),
    "token-tail": (small(class_token="tail"), (224, 224), 1),
    "token-ends": (small(class_token="ends"), (224, 224), 2),
    "token-head-512x256": (small(class_token="head"), (512, 256), 1),
    "token-ends-96x400": (small(class_token="ends"), (96, 400), 2),
    "first-entry-320": (small(first_entry=True), (320, 320), 1),
    "pool-mean": (small(**NO_TOKEN), (224, 224), 2),
    "pool-max": (small(class_token="none", pool="max"), (224, 224), 2),
    "pool-last": (small(class_token="none", pool="last"), (224, 224), 2),
    "rope": (small(rope=True, **NO_TOKEN), (224, 224), 2),
    "rope-320x192": (small(rope=True, **NO_TOKEN), (320, 192), 1),
    "rope-no-positions": (small(rope=True, position_embedding=False, **NO_TOKEN), (224, 224), 1),
    "layer-norm": (small(norm="layer"), (224, 224), 2),
    "layer-scale": (small(layer_scale=True), (224, 224), 2),
    "v1": (small(mixer="v1", merge="sum"), (224, 224), 3),
    "v1-stride8": (small(mixer="v1", merge="sum", stride=8, grid=(27, 27)), (224, 224), 1),
    "forward-only-mean": (small(mixer="none", **NO_TOKEN), (224, 224), 3),
    "states-8": (small(d_state=8), (224, 224), 2),
    "states-32": (small(d_state=32), (224, 224), 1),
    "states-64": (small(d_state=64), (224, 224), 1),
    "states-5": (small(d_state=5), (224, 224), 1),
    "convolution-3": (small(d_conv=3), (224, 224), 1),
    "convolution-1": (small(d_conv=1), (224, 224), 1),
    "narrow-inner": (small(d_inner=72), (224, 224), 1),
    "odd-inner": (small(d_inner=77, dt_rank=5), (224, 224), 2),
    "odd-width": (VimConfig.of_width(50, depth=3, classes=7), (224, 224), 3),
    "one-patch": (small(grid=(1, 1)), (16, 16), 3),
    "two-patches": (small(), (16, 32), 2),
    "prime-row": (small(), (16, 16 * 31), 1),
}


def relative_error(found: npt.NDArray[np.float32], expected: torch.Tensor) -> float:
    reference = expected.double().numpy()
    return float(np.linalg.norm(found.astype(np.float64) - reference) / np.linalg.norm(reference))


Exported = Callable[[VimConfig, int], tuple[vimrt.Engine, VisionMamba]]


def exported(config: VimConfig, seed: int, folder: Path, **options: object) -> tuple[vimrt.Engine, VisionMamba]:
    """A random checkpoint through export and engine, and the reference with the same weights."""
    state = random_state_dict(config, seed)
    checkpoint = folder / "model.pth"
    torch.save({"model": state}, checkpoint)
    choices: dict[str, object] = {"stride": config.stride}
    if config.class_token in ("head", "tail"):
        choices["class_token"] = config.class_token
    if config.class_token == "none":
        choices["pool"] = config.pool
    if config.mixer == "v2":
        choices["merge"] = config.merge
    choices["first_entry"] = config.first_entry
    export_checkpoint(checkpoint, folder / "model.vimrt", **(choices | options))  # type: ignore[arg-type]
    checkpoint.unlink()
    return vimrt.Engine(folder / "model.vimrt", device="cpu"), VisionMamba.from_state_dict(config, state)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_the_references(name: str, tmp_path: Path) -> None:
    config, (height, width), batch = VARIANTS[name]
    seed = sorted(VARIANTS).index(name)
    engine, reference = exported(config, seed, tmp_path)
    images = random_images(batch, height, width, seed)
    assert relative_error(engine.run(images), reference(images)) <= TOLERANCE


def check_values_inside(
    engine: vimrt.Engine, reference: VisionMamba, images: torch.Tensor, alone: list[str], tolerance: float
) -> None:
    """Asks for every value that the reference tells, all at once, and for those of `alone` one by one."""
    truth = reference.intermediates(images)
    together = engine.run(images, outputs=list(truth))
    for value, tensor in truth.items():
        assert relative_error(together[value], tensor) <= tolerance, value
    for value in alone:
        assert relative_error(engine.run(images, outputs=[value])[value], truth[value]) <= tolerance, value


@pytest.mark.parametrize(
    "name", ["tiny-224", "token-ends", "pool-mean", "layer-scale", "rope", "v1", "forward-only-mean"]
)
def test_values_inside_are_the_references(name: str, tmp_path: Path) -> None:
    """Every value that can be asked for is right, also those that fusion swallows otherwise: together and alone."""
    config, (height, width), batch = VARIANTS[name]
    engine, reference = exported(config, 7, tmp_path)
    images = random_images(batch, height, width, 7)
    alone = ["layers.0.hidden", "layers.1.residual", "tokens", "features"]
    check_values_inside(engine, reference, images, alone, TOLERANCE)


def test_steps_that_fusion_skips_are_right_by_themselves(tmp_path: Path) -> None:
    """Asking for every value of the graph at once turns all fusion off; the logits stay the same."""
    config, (height, width), batch = VARIANTS["token-ends"]
    engine, _ = exported(config, 11, tmp_path)
    images = random_images(batch, height, width, 11).numpy()
    names = [name for node in engine.info["nodes"] for name in node["outputs"]]
    unfused = engine.run(images, outputs=names)
    np.testing.assert_allclose(unfused["logits"], engine.run(images), rtol=1e-4, atol=1e-5)
    for block in range(config.depth):
        halves = np.concatenate([unfused[f"layers.{block}.x"], unfused[f"layers.{block}.z"]], axis=-1)
        np.testing.assert_array_equal(halves, unfused[f"layers.{block}.xz"])


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", ["token-ends", "v1", "forward-only-mean", "odd-inner"])
def test_any_number_of_threads_is_right(name: str, threads: int, tmp_path: Path) -> None:
    config, (height, width), _ = VARIANTS[name]
    engine, reference = exported(config, 3, tmp_path)
    threaded = vimrt.Engine(engine.path, device="cpu", threads=threads)
    for batch in (1, 2, 5):
        images = random_images(batch, height, width, batch)
        assert relative_error(threaded.run(images), reference(images)) <= TOLERANCE, batch


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_reduced_weights_are_computed_with_as_they_are_stored(dtype: str, tmp_path: Path) -> None:
    config = small()
    engine, reference = exported(config, 5, tmp_path, dtype=dtype)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    matrices = ("proj.weight", "proj_b.weight", "head.weight")
    rounded = {
        name: tensor.to(kind).float() if name.endswith(matrices) else tensor
        for name, tensor in reference.state_dict().items()
    }
    images = random_images(2, 224, 224, 5)
    expected = VisionMamba.from_state_dict(config, rounded)(images)
    assert relative_error(engine.run(images), expected) <= TOLERANCE


def test_runs_repeat_bit_by_bit(tmp_path: Path) -> None:
    engine, _ = exported(small(), 13, tmp_path)
    images = random_images(3, 224, 224, 13).numpy()
    first = engine.run(images)
    assert all(np.array_equal(engine.run(images), first) for _ in range(5))


def test_instruction_sets_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, reference = exported(small(), 17, tmp_path)
    images = random_images(2, 224, 224, 17)
    expected = reference(images)
    for isa in ("avx2", "avx512"):
        monkeypatch.setenv("VIMRT_CPU_ISA", isa)
        try:
            chosen = vimrt.Engine(engine.path, device="cpu")
        except vimrt.DeviceError as error:
            pytest.skip(str(error))
        assert relative_error(chosen.run(images), expected) <= TOLERANCE, isa

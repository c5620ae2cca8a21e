"""The CPU engine gives one answer, however its threads share the work and whichever instruction set it takes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import vimrt
from vimrt.export import export_checkpoint
from vimrt.export.config import VimConfig
from vimrt.export.reference import VisionMamba, random_images, random_state_dict

# Two blocks, three panels of channels and an odd number of them: teams of up to three threads share a direction.
SMALL = dataclasses.replace(VimConfig.of_width(60, depth=2, classes=11), d_inner=125, dt_rank=5)
MIXERS = {
    "own": SMALL,
    "shared": dataclasses.replace(SMALL, mixer="v1", merge="sum"),
    "none": dataclasses.replace(SMALL, mixer="none"),
}


@pytest.fixture(scope="module", params=MIXERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VisionMamba]:
    """An exported file and the reference with its weights."""
    config = MIXERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    state = random_state_dict(config, 3)
    torch.save({"model": state}, folder / "model.pth")
    export_checkpoint(folder / "model.pth", folder / "model.vimrt")
    return folder / "model.vimrt", VisionMamba.from_state_dict(config, state)


def run(path: Path, images: torch.Tensor, threads: int) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = vimrt.Engine(path, device="cpu", threads=threads).run(images)
    return logits


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_number_of_threads_gives_the_same_bits(model: tuple[Path, VisionMamba], batch: int) -> None:
    path, _ = model
    images = random_images(batch, 112, 80, batch)
    alone = run(path, images, 1)
    for threads in (2, 3, 4, 5, 8):
        np.testing.assert_array_equal(run(path, images, threads), alone, err_msg=f"{threads} threads")


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (48, 16)])
def test_sequences_shorter_than_a_chunk(model: tuple[Path, VisionMamba], size: tuple[int, int]) -> None:
    path, reference = model
    images = random_images(2, *size, seed=1)
    for threads in (1, 2, 8):
        np.testing.assert_allclose(run(path, images, threads), reference(images).numpy(), rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_do_not_depend_on_each_other(model: tuple[Path, VisionMamba]) -> None:
    path, _ = model
    images = random_images(3, 64, 64, 5)
    together = run(path, images, 2)
    for i in range(3):
        np.testing.assert_array_equal(together[i : i + 1], run(path, images[i : i + 1], 2))


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_instruction_sets_agree_with_the_reference(
    model: tuple[Path, VisionMamba], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reference = model
    monkeypatch.setenv("VIMRT_CPU_ISA", isa)
    images = random_images(2, 112, 80, 9)
    try:
        found = run(path, images, 2)
    except RuntimeError as error:
        if "this processor lacks" in str(error):
            pytest.skip(str(error))
        raise
    expected = reference(images).double().numpy()
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_an_unknown_instruction_set_is_refused(
    model: tuple[Path, VisionMamba], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIMRT_CPU_ISA", "sse2")
    with pytest.raises(RuntimeError, match=re.escape('VIMRT_CPU_ISA is "sse2"; give avx2 or avx512')):
        vimrt.Engine(model[0], device="cpu")


def test_pixels_in_bytes_give_what_normalised_floats_give(model: tuple[Path, VisionMamba]) -> None:
    """8-bit images are normalised inside the patch embedding; the products' order of summation is all that differs."""
    engine = vimrt.Engine(model[0], device="cpu")
    rows, columns = engine.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, rows, columns, 3), dtype=np.uint8)
    floats = engine.preprocess(pixels)
    found, expected = engine.run(pixels), engine.run(floats)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)

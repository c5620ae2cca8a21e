"""`vimrt demo`: from a checkpoint to predictions, in the example's folder or one laid out like it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, Vimrt
from PIL import Image
from safetensors.torch import save_file

from vimrt import Engine


@pytest.fixture
def example(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "example"
    (folder / "images").mkdir(parents=True)
    save_file(torch.load(tiny_checkpoint, weights_only=True)["model"], folder / "vim_fashion_mnist.safetensors")
    (folder / "export.json").write_text(json.dumps({"image_size": 28, "crop": 1.0}))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    for number in (3, 9):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:02}_{LABELS[number].replace(' ', '_')}.png")
    return folder


def test_images_are_classified_by_the_exported_model(vimrt: Vimrt, example: Path, tmp_path: Path) -> None:
    output = tmp_path / "kept.vimrt"
    process = vimrt("demo", "--folder", example, "--output", output)
    assert process.returncode == 0, process.stderr
    engine = Engine(output)
    assert engine.image_size == (28, 28)
    assert engine.info["preprocessing"]["crop"] == 1
    for number in (3, 9):
        (image,) = (example / "images").glob(f"{number:02}_*.png")
        label, probability = engine.classify(image, top_k=1)[0]
        (row,) = [line for line in process.stdout.splitlines() if line.startswith(image.name)]
        assert LABELS[number] in row and label in row and f"{probability:.3f}" in row
    assert "of 2 right" in process.stdout


def test_json(vimrt: Vimrt, example: Path) -> None:
    guesses = json.loads(vimrt("demo", "--folder", example, "--json").stdout)
    assert [guess["truth"] for guess in guesses] == [LABELS[3], LABELS[9]]
    for guess in guesses:
        assert guess["right"] == (guess["label"] == guess["truth"])


def test_elsewhere_the_error_says_where_to_run_it(vimrt: Vimrt, tmp_path: Path) -> None:
    process = vimrt("demo", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "clone of the vimrt repository" in process.stderr and "--folder" in process.stderr


def test_a_file_name_without_a_class_is_refused(vimrt: Vimrt, example: Path) -> None:
    image = next((example / "images").iterdir())
    image.rename(image.with_name("dress.png"))
    process = vimrt("demo", "--folder", example)
    assert process.returncode == 1
    assert "dress.png: the name does not begin with a class's number" in process.stderr

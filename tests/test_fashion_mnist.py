"""The trained example: exported, and run on all 10,000 test images beside the PyTorch reference."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

import vimrt
from vimrt.export import VimConfig, export_checkpoint
from vimrt.export.reference import VisionMamba

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "fashion_mnist"
CHECKPOINT = EXAMPLE / "vim_fashion_mnist.safetensors"
#: Debian's package dataset-fashion-mnist.
DATA = Path("/usr/share/datasets/fashion-mnist")


def exported_example(folder: Path) -> Path:
    """The example's checkpoint as a model file in `folder`."""
    path = folder / "model.vimrt"
    recipe = json.loads((EXAMPLE / "export.json").read_text())
    export_checkpoint(CHECKPOINT, path, labels=EXAMPLE / "labels.txt", **recipe)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> vimrt.Engine:
    return vimrt.Engine(exported_example(tmp_path_factory.mktemp("fashion")), device="cpu")


@pytest.fixture(scope="module")
def reference(engine: vimrt.Engine) -> VisionMamba:
    config = json.loads(engine.info["metadata"]["model"])["config"]
    state = {name: tensor.float() for name, tensor in load_file(CHECKPOINT).items()}
    return VisionMamba.from_state_dict(VimConfig.from_json(json.dumps(config)), state)


def read(name: str, header: int) -> npt.NDArray[np.uint8]:
    """The bytes of a gzipped IDX file after its header."""
    return np.frombuffer(gzip.decompress((DATA / name).read_bytes()), np.uint8, offset=header)


def as_photographs(gray: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.repeat(gray.reshape(-1, 28, 28, 1), 3, axis=3))


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Threads begun within run PyTorch's operations alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def predict(reference: VisionMamba, engine: vimrt.Engine, gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The classes that the PyTorch reference finds.

    Each thread takes batches of its own: the scan is many small operations, and sharing each of them out costs more
    than it does.
    """

    def classify(begin: int) -> npt.NDArray[np.int64]:
        with torch.inference_mode():
            pixels = torch.from_numpy(engine.preprocess(as_photographs(gray[begin : begin + 40])))
            labels: npt.NDArray[np.int64] = reference(pixels).argmax(1).numpy()
            return labels

    with single_threaded_torch(), ThreadPoolExecutor(engine.threads) as pool:
        return np.concatenate(list(pool.map(classify, range(0, len(gray), 40))))


def test_the_checkpoint_is_small() -> None:
    assert CHECKPOINT.stat().st_size <= 4_000_000


def test_the_images_are_recognised(engine: vimrt.Engine) -> None:
    images = sorted((EXAMPLE / "images").glob("*.png"))
    assert len(images) >= 10
    right = sum(engine.classify(image, 1)[0].label == engine.labels[int(image.name[:2])] for image in images)
    assert right >= len(images) - 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the test images are missing: apt install dataset-fashion-mnist")
def test_accuracy_is_the_references(engine: vimrt.Engine, reference: VisionMamba) -> None:
    gray = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    truth = read("t10k-labels-idx1-ubyte.gz", 8)
    assert len(gray) == len(truth) == 10_000
    found = engine.run(as_photographs(gray)).argmax(1)
    expected = predict(reference, engine, gray)
    accuracy, reference_accuracy = np.mean(found == truth), np.mean(expected == truth)
    print(f"accuracy on 10,000 test images: engine {accuracy:.2%}, PyTorch reference {reference_accuracy:.2%}")
    assert accuracy >= 0.93
    assert abs(accuracy - reference_accuracy) <= 0.0005
    assert abs(accuracy - json.loads((EXAMPLE / "metrics.json").read_text())["accuracy"]) <= 0.0005

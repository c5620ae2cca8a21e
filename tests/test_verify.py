"""`verify` against engines that are right, wrong from some block on, or of lower precision."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import save_file

from vimrt.export import ExportError, VerifyReport, VimConfig, export_checkpoint, verify
from vimrt.export.verify import relative_error

torch = pytest.importorskip("torch")

from vimrt.export.reference import VisionMamba, random_state_dict  # noqa: E402

CONFIG = VimConfig.of_width(32, depth=4, classes=10, grid=(4, 4))
Values = dict[str, npt.NDArray[Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small PyTorch's threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class FakeEngine:
    """Computes in fp64 with the reference's formulas, then lets `change` tamper with the values."""

    def __init__(
        self, config: VimConfig, change: Callable[[Values], None] = lambda values: None, device: str = "cpu"
    ) -> None:
        self.device = device
        self.model = VisionMamba.from_state_dict(config, random_state_dict(config, seed=0), torch.float64)
        self.change = change
        self.images: npt.NDArray[np.float32] | None = None

    def run(self, images: npt.NDArray[np.float32], outputs: Sequence[str]) -> Mapping[str, npt.NDArray[Any]]:
        self.images = images
        with torch.inference_mode():
            values = {
                name: value.numpy() for name, value in self.model.intermediates(torch.tensor(images).double()).items()
            }
        self.change(values)
        return {name: values[name] for name in outputs}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make_files(tmp_path, CONFIG)


def make_files(folder: Path, config: VimConfig, **options: Any) -> tuple[Path, Path]:
    torch.save({"model": random_state_dict(config, seed=0)}, folder / "vim.pth")
    export_checkpoint(folder / "vim.pth", folder / "vim.vimrt", **options)
    return folder / "vim.vimrt", folder / "vim.pth"


def run_verify(files: tuple[Path, Path], engine: FakeEngine, **options: Any) -> VerifyReport:
    return verify(*files, engine=engine, **options)


def test_an_engine_that_is_right_passes(files: tuple[Path, Path]) -> None:
    report = run_verify(files, FakeEngine(CONFIG))
    names = [comparison.name for comparison in report.comparisons]
    residuals = [f"layers.{i}.residual" for i in range(1, 4)]
    assert names == ["tokens_in", *residuals, "tokens", "features", "logits"]
    assert report.passed
    assert report.first_mismatch is None
    assert report.same_source
    assert report.tolerance == 1e-5
    assert all(0 < comparison.error < 1e-5 for comparison in report.comparisons[1:])


@pytest.mark.parametrize(
    ("config", "options", "last"),
    [
        (replace(CONFIG, class_token="none", pool="max"), {"pool": "max"}, ["tokens", "logits"]),
        (
            replace(CONFIG, class_token="none", pool="mean", rope=True, position_embedding=False),
            {"pool": "mean"},
            ["tokens", "features", "logits"],
        ),
        (replace(CONFIG, class_token="head", merge="sum"), {"class_token": "head", "merge": "sum"}, ["logits"]),
    ],
)
def test_the_reference_is_rebuilt_from_the_file(
    tmp_path: Path, config: VimConfig, options: dict[str, Any], last: list[str]
) -> None:
    report = run_verify(make_files(tmp_path, config, **options), FakeEngine(config))
    assert report.passed
    assert [comparison.name for comparison in report.comparisons][-len(last) :] == last


def test_the_block_where_a_mismatch_starts_is_named(files: tuple[Path, Path]) -> None:
    def spoil(values: Values) -> None:
        for name in ("layers.2.residual", "layers.3.residual", "tokens", "features", "logits"):
            values[name] = values[name] * 1.001

    report = run_verify(files, FakeEngine(CONFIG, spoil))
    assert not report.passed
    assert report.first_mismatch == "layers.2.residual"
    errors = {comparison.name: comparison.error for comparison in report.comparisons}
    assert errors["layers.1.residual"] < 1e-5
    assert errors["layers.2.residual"] == pytest.approx(1e-3, rel=0.05)


def test_nan_and_wrong_shapes_never_pass(files: tuple[Path, Path]) -> None:
    def spoil(values: Values) -> None:
        values["tokens"] = values["tokens"][:, 1:]
        values["logits"] = values["logits"] * np.nan

    report = run_verify(files, FakeEngine(CONFIG, spoil), tolerance=1e9)
    assert [comparison.name for comparison in report.comparisons if not comparison.passed] == ["tokens", "logits"]
    assert json.loads(report.to_json())["comparisons"][-1] == {"name": "logits", "error": None, "passed": False}
    assert json.loads(report.to_json())["first_mismatch"] == "tokens"


@pytest.mark.parametrize(
    ("dtype", "device", "tolerance"),
    [("fp32", "cpu", 1e-5), ("fp16", "cpu", 2e-3), ("bf16", "cpu", 2e-3), ("fp32", "cuda", 2e-3)],
)
def test_the_tolerance_follows_precision_and_device(tmp_path: Path, dtype: Any, device: str, tolerance: float) -> None:
    files = make_files(tmp_path, CONFIG, dtype=dtype)
    assert run_verify(files, FakeEngine(CONFIG, device=device)).tolerance == tolerance
    assert run_verify(files, FakeEngine(CONFIG, device=device), tolerance=0.5).tolerance == 0.5


@pytest.mark.parametrize(("image_size", "expected"), [(None, (64, 64)), (48, (48, 48)), ((64, 112), (64, 112))])
def test_images_have_the_size_number_and_seed_asked_for(
    files: tuple[Path, Path], image_size: Any, expected: tuple[int, int]
) -> None:
    images = []
    for seed in (0, 1):
        engine = FakeEngine(CONFIG)
        report = run_verify(files, engine, image_size=image_size, batch=3, seed=seed)
        assert report.passed
        assert report.image_size == expected
        assert engine.images is not None
        assert engine.images.shape == (3, 3, *expected)
        assert engine.images.dtype == np.float32
        images.append(engine.images)
    assert not np.array_equal(images[0], images[1])


def test_an_image_below_one_patch_is_an_error(files: tuple[Path, Path]) -> None:
    with pytest.raises(ExportError, match="--image-size: the image is 8x64"):
        run_verify(files, FakeEngine(CONFIG), image_size=(8, 64))


def test_other_weights_of_the_same_shape_disagree_and_are_noted(files: tuple[Path, Path]) -> None:
    torch.save({"model": random_state_dict(CONFIG, seed=5)}, files[1])
    report = run_verify(files, FakeEngine(CONFIG))
    assert not report.same_source
    assert report.first_mismatch == "tokens_in"


def test_the_same_weights_in_another_container_agree(files: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"model": random_state_dict(CONFIG, seed=0), "epoch": 3}, tmp_path / "other.pth")
    report = run_verify((files[0], tmp_path / "other.pth"), FakeEngine(CONFIG))
    assert report.passed
    assert not report.same_source


def test_averaged_weights_are_compared_with_averaged_weights(tmp_path: Path) -> None:
    content = {"model": random_state_dict(CONFIG, seed=9), "model_ema": random_state_dict(CONFIG, seed=0)}
    torch.save(content, tmp_path / "vim.pth")
    export_checkpoint(tmp_path / "vim.pth", tmp_path / "vim.vimrt", weights="model_ema")
    assert run_verify((tmp_path / "vim.vimrt", tmp_path / "vim.pth"), FakeEngine(CONFIG)).passed


def test_a_checkpoint_of_another_model_is_reported_tensor_by_tensor(files: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"model": random_state_dict(replace(CONFIG, classes=11), seed=0)}, tmp_path / "other.pth")
    with pytest.raises(ExportError) as raised:
        run_verify((files[0], tmp_path / "other.pth"), FakeEngine(CONFIG))
    assert "misshapen: head.weight is (11, 32), expected (10, 32)" in str(raised.value)


def test_a_file_that_vimrt_did_not_export(files: tuple[Path, Path], tmp_path: Path) -> None:
    save_file({"layers.0.mixer.in_proj.weight": torch.ones(3)}, tmp_path / "foreign.vimrt")
    (tmp_path / "garbage.vimrt").write_bytes(b"garbage" * 10)
    for name in ("foreign.vimrt", "garbage.vimrt"):
        with pytest.raises(ExportError, match=f"{name}: does not say which model it holds"):
            run_verify((tmp_path / name, files[1]), FakeEngine(CONFIG))
    with pytest.raises(ExportError, match=r"missing.vimrt: cannot be read"):
        run_verify((tmp_path / "missing.vimrt", files[1]), FakeEngine(CONFIG))


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named_with_what_installs_it(
    files: tuple[Path, Path], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"pip install 'vimrt\[export\]' \(.*{package}"):
        run_verify(files, FakeEngine(CONFIG))


def test_relative_error_is_the_l2_norm_of_the_difference_over_that_of_the_reference() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(np.array([[3.0, 4.5]]), expected) == pytest.approx(0.1)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.ones(2), np.zeros(2)) == math.inf
    assert relative_error(np.ones(3), np.ones(2)) == math.inf
    assert relative_error(np.array([np.nan]), np.ones(1)) == math.inf

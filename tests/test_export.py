"""From a checkpoint to a file: element types, determinism, preprocessing, labels, and nothing left after a failure."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from vimrt.export import ExportError, VimConfig, export_checkpoint
from vimrt.export.tensor import Tensor

torch = pytest.importorskip("torch")

from vimrt.export.reference import random_state_dict  # noqa: E402

CONFIG = VimConfig.of_width(32, depth=2, classes=10)
MATRICES = ("proj.weight", "proj_b.weight", "head.weight")  # in_proj, x_proj, dt_proj, out_proj, patch_embed.proj


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(random_state_dict(CONFIG, seed=0), tmp_path / "vim.pth")


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def metadata(path: Path, key: str) -> Any:
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()[key])


def dtypes(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("dtype", "element"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_matrices_take_the_type_asked_for_and_small_parameters_stay_fp32(
    checkpoint: Path, dtype: Any, element: str
) -> None:
    output = checkpoint.with_suffix(".vimrt")
    report = export_checkpoint(checkpoint, output, dtype=dtype)
    assert report.dtype == dtype
    found = dtypes(output)
    assert {name for name in found if name.endswith(MATRICES)} >= {"head.weight", "layers.1.mixer.x_proj_b.weight"}
    for name, value in found.items():
        assert value == (element if name.endswith(MATRICES) else "F32"), name


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16"), ("float64", "fp32")]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_checkpoint_decides_the_type_by_default(tmp_path: Path, dtype: str, expected: str, suffix: str) -> None:
    state = {name: value.to(getattr(torch, dtype)) for name, value in random_state_dict(CONFIG, seed=0).items()}
    source = tmp_path / f"vim{suffix}"
    save(state, source) if suffix == ".pth" else save_file(state, source)
    assert export_checkpoint(source, tmp_path / "vim.vimrt").dtype == expected
    assert_values_are_nearest(tmp_path / "vim.vimrt", state)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_values_are_rounded_to_nearest_as_pytorch_rounds_them(checkpoint: Path, dtype: Any) -> None:
    output = checkpoint.with_suffix(".vimrt")
    export_checkpoint(checkpoint, output, dtype=dtype)
    assert_values_are_nearest(output, random_state_dict(CONFIG, seed=0))


def assert_values_are_nearest(path: Path, state: dict[str, Any]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, value in state.items():
            stored = file.get_tensor(name)
            assert torch.equal(stored, value.to(stored.dtype)), name


def test_bfloat16_rounds_ties_to_even_and_overflows_to_infinity() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x80000000, 0x7F7F0000, 0x7F7FFFFF], np.uint32)
    rounded = Tensor("F32", bits.shape, bits.view(np.float32)).to("BF16")
    assert rounded.data is not None
    assert [hex(value) for value in rounded.data] == ["0x3f80", "0x3f82", "0x3f81", "0x8000", "0x7f7f", "0x7f80"]
    assert not rounded.is_finite()


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    first = export_checkpoint(checkpoint, tmp_path / "first.vimrt", dtype="fp16")
    second = export_checkpoint(checkpoint, tmp_path / "second.vimrt", dtype="fp16")
    assert (tmp_path / "first.vimrt").read_bytes() == (tmp_path / "second.vimrt").read_bytes()
    assert first.sha256 == second.sha256


def test_the_report_describes_the_file(checkpoint: Path, tmp_path: Path) -> None:
    import hashlib

    output = tmp_path / "vim.vimrt"
    report = export_checkpoint(checkpoint, output, image_size=(64, 96))
    content = output.read_bytes()
    state = random_state_dict(CONFIG, seed=0)
    assert report.size == len(content)
    assert report.sha256 == hashlib.sha256(content).hexdigest()
    assert report.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert report.tensors == len(state)
    assert report.parameters == sum(value.numel() for value in state.values())
    assert report.image_size == (64, 96)
    values = json.loads(report.to_json())
    assert values["config"]["d_model"] == 32
    assert values["output"] == str(output)


def test_provenance_names_the_source(checkpoint: Path, tmp_path: Path) -> None:
    report = export_checkpoint(checkpoint, tmp_path / "vim.vimrt")
    provenance = metadata(tmp_path / "vim.vimrt", "provenance")
    assert provenance["source"] == "vim.pth"
    assert provenance["source_sha256"] == report.source_sha256
    assert provenance["exporter"].startswith("vimrt ")


def test_preprocessing_is_the_published_recipe_unless_told_otherwise(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "default.vimrt")
    assert metadata(tmp_path / "default.vimrt", "preprocessing") == {
        "image_size": [224, 224],
        "crop": 0.875,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    export_checkpoint(
        checkpoint, tmp_path / "own.vimrt", image_size=(512, 768), mean=[0, 0.5, 1], std=[1, 2, 3], crop=1
    )
    assert metadata(tmp_path / "own.vimrt", "preprocessing") == {
        "image_size": [512, 768],
        "crop": 1,
        "interpolation": "bicubic",
        "mean": [0, 0.5, 1],
        "std": [1, 2, 3],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, "--mean is .* three numbers"),
        ({"mean": [0.5, float("nan"), 0.5]}, "--mean is .* three numbers"),
        ({"std": [1, 0, 1]}, "--std is .* above zero"),
        ({"crop": 0}, "--crop is 0; .* above 0 and at most 1"),
        ({"crop": 1.5}, "--crop is 1.5"),
        ({"image_size": 8}, "--image-size: the image is 8x8 pixels .* one patch of 16x16"),
        ({"dtype": "fp8"}, "--dtype is 'fp8'; give one of fp32, fp16, bf16"),
        ({"stride": -1}, "stride is -1"),
        ({"labels": ["cat"]}, "has 1 labels, but the model has 10 classes"),
        ({"labels": ["cat"] * 9 + [" "]}, "line 10 is empty"),
        ({"labels": "/nowhere/labels.txt"}, "/nowhere/labels.txt: cannot be read"),
        ({"weights": "model_ema"}, "no weights under 'model_ema'; it is one bare state dict"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error_and_leaves_no_file(
    checkpoint: Path, options: dict[str, Any], message: str
) -> None:
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(ExportError, match=message):
        export_checkpoint(checkpoint, checkpoint.with_suffix(".vimrt"), **options)
    assert sorted(checkpoint.parent.iterdir()) == before


def test_labels_come_from_a_file_or_a_list(checkpoint: Path, tmp_path: Path) -> None:
    names = [f"Klasse {i} Ü" for i in range(10)]
    (tmp_path / "labels.txt").write_text("\r\n".join(names) + "\r\n", encoding="utf-8")
    given: list[Any] = [tmp_path / "labels.txt", str(tmp_path / "labels.txt"), names]
    for number, labels in enumerate(given):
        output = tmp_path / f"{number}.vimrt"
        assert export_checkpoint(checkpoint, output, labels=labels).labels == 10
        assert metadata(output, "labels") == names


def test_a_model_without_labels_has_no_such_metadata(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "vim.vimrt")
    with safe_open(tmp_path / "vim.vimrt", framework="numpy") as file:
        assert "labels" not in file.metadata()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, suffix: str) -> None:
    state = random_state_dict(CONFIG, seed=0)
    for block in range(2):
        state[f"layers.{block}.mixer.A_log"][3, 4] = value
    state["head.weight"][0] = value
    source = tmp_path / f"vim{suffix}"
    save(state, source) if suffix == ".pth" else save_file(state, source)
    with pytest.raises(ExportError) as raised:
        export_checkpoint(source, tmp_path / "vim.vimrt", dtype="bf16")
    assert "not finite: layers.0..1.mixer.A_log (1 of 1024 values)" in str(raised.value)
    assert "not finite: head.weight (32 of 320 values)" in str(raised.value)
    assert list(tmp_path.iterdir()) == [source]


def test_fp16_overflow_names_the_tensor_and_a_type_that_holds_it(tmp_path: Path) -> None:
    state = random_state_dict(CONFIG, seed=0)
    state["layers.1.mixer.out_proj.weight"][0, 0] = 70000.0
    state["norm_f.weight"][0] = 70000.0  # stays fp32 and does no harm
    source = save(state, tmp_path / "vim.pth")
    with pytest.raises(ExportError, match="--dtype bf16 or fp32") as raised:
        export_checkpoint(source, tmp_path / "vim.vimrt", dtype="fp16")
    assert "layers.1.mixer.out_proj.weight reaches 70000, beyond fp16" in str(raised.value)
    assert "norm_f" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [source]
    export_checkpoint(source, tmp_path / "vim.vimrt", dtype="bf16")


def test_a_failing_disk_leaves_neither_a_partial_file_nor_harms_the_old_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = checkpoint.with_suffix(".vimrt")
    output.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ExportError, match=r"vim\.vimrt: cannot be written: No space left on device"):
        export_checkpoint(checkpoint, output)
    assert output.read_bytes() == b"old"
    assert sorted(checkpoint.parent.iterdir()) == [checkpoint, output]


def test_an_interrupt_while_writing_leaves_nothing(checkpoint: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "writing" and 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, checkpoint.with_suffix(".vimrt"), progress=interrupt)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_progress_reaches_the_end_of_every_stage(checkpoint: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    export_checkpoint(
        checkpoint,
        checkpoint.with_suffix(".vimrt"),
        progress=lambda stage, done, total: calls.append((stage, done, total)),
    )
    last = {stage: (done, total) for stage, done, total in calls}
    assert last.keys() == {"reading", "converting", "writing"}
    assert all(done == total > 0 for done, total in last.values())


def test_the_output_cannot_be_a_folder_in_a_missing_one_or_the_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="is a folder; give the name of the file"):
        export_checkpoint(checkpoint, checkpoint.parent)
    with pytest.raises(ExportError, match="does not exist; create it first"):
        export_checkpoint(checkpoint, checkpoint.parent / "missing" / "vim.vimrt")
    content = checkpoint.read_bytes()
    with pytest.raises(ExportError, match="is the checkpoint itself"):
        export_checkpoint(checkpoint, checkpoint)
    assert checkpoint.read_bytes() == content


def test_safetensors_export_needs_no_torch(tmp_path: Path) -> None:
    config = replace(CONFIG, class_token="ends")
    state = {name: value.bfloat16() for name, value in random_state_dict(config, seed=0).items()}
    save_file(state, tmp_path / "vim.safetensors")
    program = (
        "import sys\n"
        "sys.modules['torch'] = None  # importing torch fails\n"
        "from vimrt.export import export_checkpoint\n"
        "report = export_checkpoint(sys.argv[1], sys.argv[2])\n"
        "print(report.dtype, report.config.class_token)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "vim.safetensors"), str(tmp_path / "vim.vimrt")]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["bf16", "ends"]
    assert_values_are_nearest(tmp_path / "vim.vimrt", state)


def test_pth_without_torch_says_what_to_install(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ExportError, match=r"vim.pth: reading .pth needs PyTorch: pip install 'vimrt\[export\]'"):
        export_checkpoint(checkpoint, checkpoint.with_suffix(".vimrt"))


def test_pth_with_a_torch_whose_restricted_unpickler_is_unsafe_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ExportError, match=r"needs PyTorch 2.6 or newer, not 2.5.1\+cpu"):
        export_checkpoint(checkpoint, checkpoint.with_suffix(".vimrt"))

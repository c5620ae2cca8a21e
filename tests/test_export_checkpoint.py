"""Reading checkpoints: the layouts that training code leaves, and files that are damaged or hostile."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vimrt.export import ExportError, export_checkpoint, read_checkpoint

torch = pytest.importorskip("torch")

STATE = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "head.bias": np.array([1.5, -2.0], np.float32)}


def state_dict(offset: float = 0.0, prefix: str = "") -> dict[str, Any]:
    return OrderedDict((prefix + name, torch.from_numpy(values) + offset) for name, values in STATE.items())


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is_state(path: Path, offset: float = 0.0, **options: Any) -> None:
    tensors = read_checkpoint(path, **options).tensors
    assert list(tensors) == list(STATE)
    for name, values in STATE.items():
        np.testing.assert_array_equal(tensors[name].values(), values + offset)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = save(state_dict(), tmp_path / f"vim{suffix}", _use_new_zipfile_serialization=zipped)
    assert_is_state(path)
    assert read_checkpoint(path).weights is None


def test_a_training_checkpoint_with_optimizer_epoch_and_arguments(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "model": state_dict(),
        "model_ema": state_dict(1.0),
        "optimizer": optimizer.state_dict(),
        "epoch": 299,
        "args": argparse.Namespace(lr=5e-4, model="vim_tiny"),
    }
    path = save(content, tmp_path / "vim.pth")
    assert_is_state(path)
    assert_is_state(path, weights="model")
    assert_is_state(path, offset=1.0, weights="model_ema")
    assert read_checkpoint(path).weights == "model"


def test_averaged_weights_are_taken_where_there_are_no_others(tmp_path: Path) -> None:
    path = save({"model_ema": state_dict()}, tmp_path / "vim.pth")
    assert_is_state(path)
    assert read_checkpoint(path).weights == "model_ema"


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    path = save({"model": state_dict()}, tmp_path / "vim.pth")
    with pytest.raises(ExportError, match="no weights under 'model_ema'; it has model"):
        read_checkpoint(path, "model_ema")


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path: Path) -> None:
    assert_is_state(save({"model": state_dict(prefix="module.")}, tmp_path / "vim.pth"))
    save_file({f"module.{name}": values for name, values in STATE.items()}, tmp_path / "vim.safetensors")
    tensors = read_checkpoint(tmp_path / "vim.safetensors").tensors
    assert tensors.keys() == STATE.keys()


def test_views_and_parameters_are_read_by_value(tmp_path: Path) -> None:
    transposed = torch.nn.Parameter(torch.arange(6.0).reshape(3, 2).t())
    path = save({"head.weight": transposed}, tmp_path / "vim.pth")
    np.testing.assert_array_equal(read_checkpoint(path).tensors["head.weight"].values(), [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(("dtype", "name"), [("float64", "F64"), ("float32", "F32"), ("float16", "F16")])
def test_element_types_are_kept(tmp_path: Path, dtype: str, name: str) -> None:
    values = torch.tensor([[1.0, -0.5], [2.0, 3.25]], dtype=getattr(torch, dtype))
    from_pth = read_checkpoint(save({"x": values}, tmp_path / "vim.pth")).tensors["x"]
    save_file({"x": values.numpy()}, tmp_path / "vim.safetensors")
    from_safetensors = read_checkpoint(tmp_path / "vim.safetensors").tensors["x"]
    for tensor in (from_pth, from_safetensors):
        assert tensor.dtype == name
        assert tensor.shape == (2, 2)
        np.testing.assert_array_equal(tensor.values(), values.numpy())


def test_bfloat16_is_read_from_both_formats(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch_file

    values = torch.randn(5, 7).bfloat16()
    save({"x": values}, tmp_path / "vim.pth")
    save_torch_file({"x": values}, tmp_path / "vim.safetensors")
    for suffix in (".pth", ".safetensors"):
        tensor = read_checkpoint(tmp_path / f"vim{suffix}").tensors["x"]
        assert tensor.dtype == "BF16"
        np.testing.assert_array_equal(tensor.values(), values.float().numpy())


def test_tensors_without_values_of_use_are_listed_with_their_type(tmp_path: Path) -> None:
    save({"steps": torch.tensor([3])}, tmp_path / "vim.pth")
    save_file({"steps": np.array([3])}, tmp_path / "vim.safetensors")
    assert read_checkpoint(tmp_path / "vim.pth").tensors["steps"].dtype == "int64"
    tensor = read_checkpoint(tmp_path / "vim.safetensors").tensors["steps"]
    assert (tensor.dtype, tensor.data) == ("I64", None)


def test_safetensors_holds_one_set_of_weights(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "vim.safetensors")
    with pytest.raises(ExportError, match="one set of weights; leave out --weights model_ema"):
        read_checkpoint(tmp_path / "vim.safetensors", "model_ema")


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"missing\.pth: there is no such file"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(ExportError, match="is a folder; give the checkpoint file inside"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vim{suffix}"
    path.touch()
    with pytest.raises(ExportError, match=f"vim{suffix}: is empty; copy it again"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["vim.onnx", "vim", "vim.vimrt"])
def test_an_unknown_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(ExportError, match=r"ends in .pth, .pt or .safetensors, not in "):
        read_checkpoint(tmp_path / name)


def test_a_web_page_under_a_checkpoints_name(tmp_path: Path) -> None:
    (tmp_path / "vim.pth").write_text("<!DOCTYPE html><title>Not found</title>")
    with pytest.raises(ExportError, match="is no PyTorch checkpoint: it begins with b'<!DOCTYPE"):
        read_checkpoint(tmp_path / "vim.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected a state dict"),
        ({}, "holds no tensor"),
        ({"model": {}}, "holds no tensor"),
        ({"state_dict": {"x": 1}, "epoch": 3}, 'is no state dict: "state_dict", "epoch" are no tensor'),
        ({"model": {"x": 1}}, 'is no state dict: "x" is no tensor'),
    ],
)
def test_a_pickle_without_weights(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        read_checkpoint(save(content, tmp_path / "vim.pth"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_cut_short(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / ("vim.safetensors" if kind == "safetensors" else "vim.pth")
    if kind == "safetensors":
        save_file({"x": np.ones(1000, np.float32)}, path)
    else:
        save({"x": torch.ones(1000)}, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(kept * len(content)))])
    with pytest.raises(ExportError, match="cut short or damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_give_an_export_error_or_tensors(tmp_path: Path, zipped: bool) -> None:
    content = bytearray(save(state_dict(), tmp_path / "vim.pth", _use_new_zipfile_serialization=zipped).read_bytes())
    random = np.random.default_rng(0)
    errors = 0
    for _ in range(200):
        damaged = bytearray(content)
        for position in random.integers(2, len(content), 8):
            damaged[position] = random.integers(256)
        (tmp_path / "vim.pth").write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / "vim.pth")
        except ExportError:
            errors += 1
    assert errors > 20


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,99999]}}',
        b'{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b"not json",
        b"",
    ],
)
def test_a_damaged_safetensors_header(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "vim.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ExportError, match=r"vim.safetensors: (is no safetensors file|holds no tensor)"):
        read_checkpoint(tmp_path / "vim.safetensors")


class Hostile:
    """Unpickling this with Python's own unpickler would create a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "inside", "alone"])
def test_a_pickle_that_would_run_code_is_refused_by_name_and_nothing_runs(
    tmp_path: Path, zipped: bool, place: str
) -> None:
    witness, hostile = tmp_path / "it-ran", Hostile(tmp_path / "it-ran")
    content = {
        "beside": {"model": state_dict(), "args": hostile},
        "inside": {"model": state_dict() | {"x": hostile}},
        "alone": hostile,
    }[place]
    path = save(content, tmp_path / "vim.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ExportError, match=r"refused, because reading it would run code: it names (posix|nt).mkdir"):
        export_checkpoint(path, tmp_path / "vim.vimrt")
    assert not witness.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_the_hostile_pickle_is_hostile(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists()


def test_a_plain_pickle_is_refused_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "vim.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "it-ran"), protocol=2))
    with pytest.raises(ExportError, match=r"vim\.pth: "):
        read_checkpoint(tmp_path / "vim.pth")
    assert not (tmp_path / "it-ran").exists()


def test_all_refused_names_of_an_archive_are_listed(tmp_path: Path) -> None:
    path = save({"a": Path("x"), "b": json.JSONDecoder, "args": argparse.Namespace()}, tmp_path / "vim.pth")
    with pytest.raises(ExportError, match="refused") as raised:
        read_checkpoint(path)
    assert "json.decoder.JSONDecoder" in str(raised.value)
    assert "PosixPath" in str(raised.value)
    assert "it names argparse" not in str(raised.value)


def test_a_zip_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.txt", "no weights")
    (tmp_path / "vim.pth").write_bytes(buffer.getvalue())
    with pytest.raises(ExportError, match="is no PyTorch checkpoint, or cut short or damaged"):
        read_checkpoint(tmp_path / "vim.pth")

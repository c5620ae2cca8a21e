"""Reads a checkpoint: .pth and .pt through PyTorch's restricted unpickler, .safetensors without PyTorch.

A .pth file is a pickle, and unpickling runs whatever code the file names. Here it is only ever read with PyTorch's
`weights_only=True`, which knows tensors and containers, and argparse.Namespace, in which the authors' training code
keeps its options. Any other name in the file is an error, never a call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ExportError
from .tensor import STORAGE, Tensor

if TYPE_CHECKING:
    import torch

#: The state dicts that the authors' training code saves side by side.
STATE_DICT_KEYS = ("model", "model_ema")

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name, in the file's order, DataParallel's "module." taken off.

    `weights` is the key of the state dict they come from, None where the file is a bare one. The data are mapped from
    the file where its format allows it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    weights: str | None


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Reads a .pth, .pt or .safetensors file.

    `weights` chooses between the state dicts of a training checkpoint, "model" or "model_ema"; None takes "model", or
    the file's only state dict. Raises ExportError where the file is not a checkpoint, would run code, is cut short, or
    lacks what was chosen.
    """
    path = Path(path)
    _check_readable(path)
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
        if weights is not None:
            raise ExportError(
                f"{path.name}: a safetensors file holds one set of weights; leave out --weights {weights}"
            )
        key = None
    elif path.suffix in (".pth", ".pt"):
        key, state_dict = _choose_state_dict(path, _load_pickle(path), weights)
        state = _from_torch(path, state_dict)
    else:
        raise ExportError(
            f"{path.name}: a checkpoint's name ends in .pth, .pt or .safetensors, not in "
            f'"{path.suffix}"' + ("; this one is exported already" if path.suffix == ".vimrt" else "")
        )
    if not state:
        raise ExportError(f"{path.name}: holds no tensor; give the checkpoint of a trained model")
    return Checkpoint(path, _strip_data_parallel(state), key)


def sha256_of(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """The SHA-256 of a file in hexadecimal; `progress(done, total)` is called with bytes."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; give the checkpoint file inside it")
    if not path.exists():
        raise ExportError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    if empty:
        raise ExportError(f"{path.name}: is empty; copy it again")


def _strip_data_parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


# safetensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Maps a safetensors file. The library checks its header; NumPy maps the data, BF16 included."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ExportError(
            f"{path.name}: reading safetensors needs the safetensors package: pip install 'vimrt[export]'"
        ) from error
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ExportError(f"{path.name}: is no safetensors file, or cut short or damaged: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {name: _map_entry(path, 8 + length, entry) for name, entry in entries}


def _map_entry(path: Path, data_begin: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in STORAGE:
        return Tensor(dtype, shape, None)
    if begin == end:
        return Tensor(dtype, shape, np.empty(shape, STORAGE[dtype]))
    return Tensor(dtype, shape, np.memmap(path, STORAGE[dtype], "r", data_begin + begin, shape))


# PyTorch


def _load_pickle(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ExportError(
            f"{path.name}: reading {path.suffix} needs PyTorch: pip install 'vimrt[export]', "
            "or give the weights as .safetensors"
        ) from error
    # Below this, even the restricted unpickler could be made to run code (CVE-2025-32434).
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ExportError(
            f"{path.name}: reading {path.suffix} needs PyTorch 2.6 or newer, not {torch.__version__}: "
            "pip install --upgrade torch"
        )
    with path.open("rb") as file:
        start = file.read(64)
    is_zip = start.startswith(_ZIP_MAGIC)
    if not is_zip and not start.startswith(_PICKLE_MAGIC):
        raise ExportError(
            f"{path.name}: is no PyTorch checkpoint: it begins with {start[:16]!r}, expected a zip archive or a pickle"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch makes of a damaged file; the error below says it once
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
        raise _unreadable(path, str(error), is_zip) from error


def _unreadable(path: Path, message: str, is_zip: bool) -> ExportError:
    names = _unsafe_globals(path, message, is_zip)
    if names:
        return ExportError(
            f"{path.name}: refused, because reading it would run code: it names {', '.join(names)}. vimrt reads "
            "tensors, containers and argparse.Namespace alone. If you trust the file's origin, save its state dict by "
            "itself with PyTorch or safetensors and export that"
        )
    return ExportError(
        f"{path.name}: is no PyTorch checkpoint, or cut short or damaged; copy it again "
        f"(PyTorch: {message.strip().splitlines()[0] if message.strip() else 'no message'})"
    )


def _unsafe_globals(path: Path, message: str, is_zip: bool) -> list[str]:
    """The names that the restricted unpickler refused; for an archive all of them, otherwise the first."""
    import torch

    refused = re.findall(r"GLOBAL ([\w.]+)", message)
    if refused and is_zip:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or refused
    return refused


def _choose_state_dict(path: Path, content: Any, weights: str | None) -> tuple[str | None, dict[str, Any]]:
    if not isinstance(content, dict):
        raise ExportError(f"{path.name}: holds a {type(content).__name__}; expected a state dict or a dict with one")
    present = [key for key in STATE_DICT_KEYS if isinstance(content.get(key), dict)]
    if weights is not None and weights not in present:
        found = f"it has {' and '.join(present)}" if present else "it is one bare state dict"
        raise ExportError(f"{path.name}: has no weights under {weights!r}; {found}")
    if present:
        key = weights or present[0]
        return key, content[key]
    return None, content


def _from_torch(path: Path, state_dict: dict[Any, Any]) -> dict[str, Tensor]:
    import torch

    others = [str(key) for key, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ExportError(
            f"{path.name}: is no state dict: {_some(others)} {'is' if len(others) == 1 else 'are'} no tensor; expected "
            'tensors by name, bare or under "model"'
        )
    return {str(name): _tensor_from_torch(value) for name, value in state_dict.items()}


def _tensor_from_torch(value: torch.Tensor) -> Tensor:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    shape = tuple(value.shape)
    if value.dtype not in names or value.layout != torch.strided or value.device.type != "cpu":
        return Tensor(str(value.dtype).removeprefix("torch."), shape, None)
    value = value.detach()
    bits = value.view(torch.uint16) if value.dtype == torch.bfloat16 else value
    return Tensor(names[value.dtype], shape, bits.numpy())


def _some(names: list[str], limit: int = 5) -> str:
    quoted = ", ".join(f'"{name}"' for name in names[:limit])
    return quoted if len(names) <= limit else f"{quoted} and {len(names) - limit} more"

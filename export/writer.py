"""Writes a safetensors file: https://github.com/huggingface/safetensors#format, docs/file-format.md.

The bytes depend on tensors and metadata alone, and a file under the output's name is always whole: data go to a
temporary file beside it, which takes the name when everything is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from .errors import ExportError
from .tensor import STORAGE, Tensor

#: Tensor data begin at a multiple of this many bytes, a cache line.
ALIGNMENT = 64


@dataclass(frozen=True)
class WrittenFile:
    """What was written: the file's size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> WrittenFile:
    """Writes `tensors` and `metadata` to `path`, replacing a file of that name only when all is written.

    `progress(done, total)` is called with bytes of tensor data. Raises ExportError where the file cannot be written;
    nothing is left behind then, nor when the caller is interrupted.
    """
    order = sorted(tensors, key=lambda name: -_alignment(tensors[name]))
    header = _header({name: tensors[name] for name in order}, metadata)
    total = sum(tensor.nbytes for tensor in tensors.values())
    digest = hashlib.sha256(header)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(header)
            done = 0
            for name in order:
                done += _write_tensor(file, tensors[name], digest)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return WrittenFile(len(header) + total, digest.hexdigest())


def _write_tensor(file: IO[bytes], tensor: Tensor, digest: hashlib._Hash) -> int:
    data = np.ascontiguousarray(tensor.data, dtype=STORAGE[tensor.dtype]).reshape(-1).view(np.uint8)
    file.write(data.data)
    digest.update(data.data)
    return data.nbytes


def _alignment(tensor: Tensor) -> int:
    """The largest power of two, up to ALIGNMENT, that divides the tensor's size.

    The format allows no holes. With tensors in falling order of this number, each begins at a multiple of it: all
    whose size is a multiple of a cache line begin at one.
    """
    size = tensor.nbytes
    return min(size & -size, ALIGNMENT) if size else ALIGNMENT


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The header's length and the header, padded with spaces so that the data behind it are aligned."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

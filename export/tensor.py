"""A tensor on its way from a checkpoint to a file, in NumPy alone.

NumPy has no bfloat16. Its 16 bits are the upper half of a float32, so a BF16 tensor travels as uint16 and is widened
or rounded here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: NumPy's type for each element type, by safetensors' name; BF16 as raw bits.
STORAGE: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """Values of one element type.

    `dtype` is safetensors' name of it. `data` holds the values in the NumPy type of `STORAGE`, or is None where vimrt
    has no use for the element type (integers, 8-bit floats): such a tensor can be listed but not exported.
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | None

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes; `dtype` must be one of `STORAGE`."""
        return math.prod(self.shape) * STORAGE[self.dtype].itemsize

    def values(self) -> npt.NDArray[Any]:
        """The values as a floating-point array that NumPy can compute with; a copy for BF16 only."""
        if self.data is None:
            raise TypeError(f"a tensor of type {self.dtype} has no floating-point values")
        return _widen_bf16(self.data) if self.dtype == "BF16" else self.data

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(np.isfinite(self.values()).all())

    def to(self, dtype: str) -> Tensor:
        """The values rounded to the nearest of `dtype`: "F32", "F16" or "BF16".

        Values beyond the range of `dtype` become infinite, as IEEE 754 has it; ask `is_finite` afterwards.
        """
        if dtype == self.dtype:
            return self
        values = self.values()
        with np.errstate(over="ignore"):
            data = _round_bf16(values.astype(np.float32)) if dtype == "BF16" else values.astype(STORAGE[dtype])
        return Tensor(dtype, self.shape, data)


def _widen_bf16(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round_bf16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """float32 to bfloat16 bits, to nearest, ties to even. Not for NaN, whose payload the carry could clear."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    carry = ((bits >> 16) & 1) + 0x7FFF
    return ((bits + carry) >> 16).astype(np.uint16)

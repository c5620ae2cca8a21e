"""Arrays on a CUDA device, in from other libraries and out to them without a copy, and runs that are not waited for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Generic, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from . import _vimrt
from ._vimrt import InvalidArgument

T = TypeVar("T")

_LEGACY_STREAM = 1  # as CUDA, DLPack and __cuda_array_interface__ number the default stream
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_MANAGED = 1, 2, 13
_NOT_READABLE = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class DeviceArray:
    """A result on a CUDA device: dense float32, ordered on the stream of its run.

    Other libraries take it without a copy, and wait for the run on the device: `torch.from_dlpack(result)`,
    `cupy.from_dlpack(result)`, `jax.dlpack.from_dlpack(result)`. The memory lives as long as any of them holds it; it
    serves other work when nobody does any more. Work on it that was enqueued on streams other than the run's, the
    default one and those that synchronise with it must be done by then.
    """

    def __init__(self, pending: _vimrt.Pending, tensor: _vimrt.Tensor) -> None:
        self._pending = pending
        self._tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions, outermost first."""
        return self._tensor.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(self._tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def device(self) -> str:
        """ "cuda:N"."""
        return self._tensor.device

    @property
    def stream(self) -> int:
        """The CUDA stream that the run is on, as a handle."""
        return self._pending.stream

    def numpy(self) -> npt.NDArray[np.float32]:
        """A copy on the host. Waits for the run."""
        return self._pending.to_host(self._tensor)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("an array on a CUDA device cannot become a NumPy array without a copy")
        return self.numpy().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device!r})"

    def __dlpack_device__(self) -> tuple[int, int]:
        kind = _DLPACK_CPU if self.device == "cpu" else _DLPACK_CUDA
        return kind, self._tensor.device_index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """As the array API standard has it: `stream` is the consumer's, which is made to wait for the run; None stands
        for the default stream, -1 for no waiting."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            if tuple(dl_device) == (_DLPACK_CPU, 0) and copy is not False:
                return self.numpy().__dlpack__()
            raise BufferError(f"a result on {self.device} cannot be handed over on another device; use numpy()")
        if copy:
            raise BufferError("vimrt hands its memory over without a copy; copy the array that you make of it")
        if self.device != "cpu" and stream != -1:
            if stream == 0:
                raise BufferError("stream 0 is ambiguous; give 1 for the default stream or 2 for the thread's own")
            self._pending.hold(_LEGACY_STREAM if stream is None else stream)
        return self._tensor.to_dlpack(versioned=max_version is not None and max_version[0] >= 1)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device == "cpu":
            raise AttributeError("the array is not on a CUDA device")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._tensor.pointer, False),
            "strides": None,
            "version": 3,
            "stream": None if self._pending.done() else self.stream,
        }


class Pending(Generic[T]):
    """A run that may still be under way."""

    def __init__(self, pending: _vimrt.Pending, results: Callable[[_vimrt.Pending], T]) -> None:
        self._pending = pending
        self._results = results

    def done(self) -> bool:
        """Whether the results are there."""
        return self._pending.done()

    def wait(self) -> None:
        """Returns when the results are there.

        Raises:
            DeviceError: the run failed on the device.
        """
        self._pending.wait()

    def result(self) -> T:
        """Waits, and gives what run() would have given."""
        self.wait()
        return self._results(self._pending)


def is_on_device(value: Any) -> bool:
    """Whether `value` is an array in CUDA memory, by DLPack or else by __cuda_array_interface__."""
    if isinstance(value, np.ndarray | list | tuple | str | bytes):
        return False
    try:
        kind, _ = value.__dlpack_device__()
        return int(kind) in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED)
    except AttributeError:
        return hasattr(value, "__cuda_array_interface__")
    except Exception:
        return False  # whatever it is, it says so where it is read


def device_index_of(value: Any) -> int | None:
    """The index of the CUDA device that is_on_device() saw; None where the array does not tell."""
    return int(value.__dlpack_device__()[1]) if hasattr(value, "__dlpack_device__") else None


def stream_handle(stream: Any) -> int:
    """A CUDA stream as a handle: an integer, or a stream of torch, CuPy or cuda.core."""
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        stream = (protocol() if callable(protocol) else protocol)[1]
    for attribute in ("cuda_stream", "ptr"):  # torch, CuPy
        stream = getattr(stream, attribute, stream)
    if not isinstance(stream, SupportsIndex) or not 0 <= stream.__index__() < 2**64:
        raise InvalidArgument(
            f"stream is {stream!r}; give the integer handle of a CUDA stream, or a stream of torch or CuPy"
        )
    return stream.__index__() or _LEGACY_STREAM


def current_stream(value: Any) -> int:
    """The stream that the library of `value` works on now: torch's or CuPy's current one, else the default stream."""
    library = type(value).__module__.partition(".")[0]
    module = sys.modules.get(library)
    if library == "torch" and module is not None:
        return stream_handle(module.cuda.current_stream(device_index_of(value)))
    if library == "cupy" and module is not None:
        return stream_handle(module.cuda.get_current_stream())
    interface = None if hasattr(value, "__dlpack__") else value.__cuda_array_interface__
    return (interface or {}).get("stream") or _LEGACY_STREAM


def take(value: Any, stream: int, engine: _vimrt.Engine, *, writable: bool = False) -> _vimrt.Tensor:
    """`value`, an array in CUDA memory, without a copy, for work on `stream`."""
    if not hasattr(value, "__dlpack__"):
        return _take_interface(value.__cuda_array_interface__, stream, engine, writable)
    try:
        try:
            capsule = value.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:  # a producer from before DLPack had versions
            capsule = value.__dlpack__(stream=stream)
    except _NOT_READABLE as error:
        raise InvalidArgument(f"the DLPack tensor cannot be read: {error}; give a dense float32 tensor") from error
    return _vimrt.Tensor.from_dlpack(capsule, writable)


def _take_interface(interface: dict[str, Any], stream: int, engine: _vimrt.Engine, writable: bool) -> _vimrt.Tensor:
    """An array by the CUDA Array Interface, version 3 or before."""
    try:
        pointer, read_only = interface["data"]
        shape = tuple(int(side) for side in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        strides, mask, producer = (interface.get(key) for key in ("strides", "mask", "stream"))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"__cuda_array_interface__ cannot be read: {error!r}") from error
    if dtype not in (np.float32, np.uint8):
        raise InvalidArgument(
            f"the tensor's dtype is {dtype}; on a device give float32 (B, 3, H, W), already normalised, "
            "or uint8 (B, H, W, 3)"
        )
    if mask is not None or not _is_dense(shape, strides, dtype.itemsize):
        raise InvalidArgument(f"the tensor of shape {shape} is not dense; on a device give a contiguous one")
    if writable and read_only:
        raise InvalidArgument("out is read-only; give a writable, dense float32 tensor")
    if producer is not None and producer != stream:
        engine.order(stream, producer)
    return _vimrt.Tensor.from_pointer(pointer, shape, dtype.name, engine.device_index)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> bool:
    if strides is None or 0 in shape:
        return True
    expected = itemsize
    for side, stride in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True

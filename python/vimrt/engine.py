"""The engine as Python users meet it: whatever an image may be, in; NumPy, out."""

from __future__ import annotations

import importlib.util
import operator
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from . import _vimrt
from ._vimrt import InvalidArgument
from .device_array import DeviceArray, Pending, current_stream, device_index_of, is_on_device, stream_handle, take
from .images import ByteArray, Photograph, is_photograph, to_rgb

FloatArray: TypeAlias = npt.NDArray[np.float32]

_INT64_MAX = 2**63 - 1
_DLPACK_CPU = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost: memory that the host reads directly


class Prediction(NamedTuple):
    """One class of a classification: its label and its softmax probability."""

    label: str
    probability: float


class StepTime(NamedTuple):
    """One step of a run, and its seconds."""

    name: str
    seconds: float


class Profile(NamedTuple):
    """The steps of a run of `images` images, timed one by one."""

    images: int
    steps: list[StepTime]


class DeviceWarning(RuntimeWarning):
    """device="auto" took the CPU although this machine has an NVIDIA driver."""


class Engine:
    """A model, loaded once and run from any number of threads.

    Args:
        path: a .vimrt file.
        device: "auto", "cpu", "cuda" or "cuda:N". "auto" takes a CUDA device where one can be used, and the CPU
            otherwise; on a machine with an NVIDIA driver it then says once, by a DeviceWarning, what is missing.
        dtype: how activations are stored on the device: "fp32", "fp16" or "bf16"; by default the device's choice.
            The CPU computes in fp32, whatever the file's weights are stored in.
        threads: CPU threads; by default as many as the process may use.
        max_memory: bytes of activations the engine may hold at a time. Larger batches run in slices.

    Raises:
        FormatError: the file is damaged, of a newer version, or no .vimrt file.
        DeviceError: the device or something it needs is missing.
        InvalidArgument: an option is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        threads, max_memory = _limit("threads", threads, 1024), _limit("max_memory", max_memory, _INT64_MAX)
        self._path = os.fsdecode(path)
        self._engine = _vimrt.Engine(os.fsencode(path), device, dtype, threads, max_memory, _library_folders(device))
        # Inputs of runs that may be under way on a stream that the inputs' own library knows nothing of.
        self._in_flight: list[tuple[_vimrt.Pending, _vimrt.Tensor, Any]] = []
        self._in_flight_lock = threading.Lock()
        if self._engine.warning:
            _warn_once(self._engine.warning)

    def __repr__(self) -> str:
        return f"Engine({self.path!r}, device={self.device!r})"

    @property
    def path(self) -> str:
        """The file."""
        return self._path

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda:N"."""
        return self._engine.device

    @property
    def backend(self) -> str:
        """The device and how it is used, for people: "cpu (AVX-512, 2 threads)"."""
        return self._engine.backend

    @property
    def dtype(self) -> str:
        """How activations are stored: "float32", "float16" or "bfloat16"."""
        return self._engine.dtype

    @property
    def threads(self) -> int:
        """CPU threads of a run."""
        return self._engine.threads

    @property
    def labels(self) -> list[str]:
        """One label for each class, or none at all."""
        return self._engine.labels

    @property
    def outputs(self) -> list[str]:
        """Names that run() takes; the first is its default. Besides them, every value of the graph has a name."""
        return self._engine.outputs

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns that photographs are brought to by default."""
        rows, columns = self._engine.image_size
        return rows, columns

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What the file says: metadata, preprocessing, weights, nodes, parameters, weight_bytes, format_version.

        Put together when it is first asked for, and kept: some hundred KiB for a model of 24 blocks.
        """
        return self._engine.info()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes held now: "activations" in arenas, "constants" in packed weights and tables, "program" in the loaded
        graph and in what was made of it for each image size."""
        return {
            "activations": self._engine.arena_bytes,
            "constants": self._engine.constant_bytes,
            "program": self._engine.program_bytes,
        }

    @overload
    def run(
        self,
        images: Any,
        outputs: None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        out: None = None,
        stream: Any = None,
        wait: Literal[True] = True,
    ) -> Any: ...
    @overload
    def run(
        self,
        images: Any,
        outputs: Sequence[str],
        *,
        image_size: int | tuple[int, int] | None = None,
        out: None = None,
        stream: Any = None,
        wait: Literal[True] = True,
    ) -> dict[str, Any]: ...
    @overload
    def run(
        self,
        images: Any,
        outputs: Sequence[str] | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        out: None = None,
        stream: Any = None,
        wait: Literal[False],
    ) -> Pending[Any]: ...
    @overload
    def run(
        self, images: Any, outputs: None = None, *, image_size: None = None, out: Any, stream: Any = None
    ) -> Any: ...

    def run(
        self,
        images: Any,
        outputs: Sequence[str] | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        out: Any = None,
        stream: Any = None,
        wait: bool = True,
    ) -> Any:
        """Runs the model.

        Args:
            images: photographs: a path, a PIL image, a uint8 array (H, W, 3) or (B, H, W, 3), or a list of any of
                these, of any sizes, preprocessed by the file's recipe. Or a float array or CPU DLPack tensor
                (B, 3, H, W), taken as already normalised, of any H and W the graph allows; float32 that is dense
                is not copied. Or a dense array on the engine's CUDA device, of torch, CuPy, JAX or any library with
                DLPack or __cuda_array_interface__, never copied: float32 (B, 3, H, W), already normalised, or uint8
                (B, H, W, 3) at its final size, which is normalised by the recipe.
            outputs: names of results ("logits", "features", "tokens", or any value of the graph).
            image_size: for photographs on the host: another size than the recipe's, N or (rows, columns).
            out: for the default output, and no photographs: a dense float32 array, on the host or on the engine's
                device, that receives the result. With it, a run of a size seen before allocates nothing.
            stream: for arrays on the device: the CUDA stream to run on, as an integer handle or an object of torch or
                CuPy; by default the current stream of the input's library, or the default stream.
            wait: False returns a Pending at once, whose result() is what this returns otherwise. The input, where it
                is on the host, may be changed then. The CPU runs before it returns.

        Returns:
            float32 logits (B, classes); with `outputs`, a dict by name. NumPy arrays for an input on the host. For
            one on the device DeviceArrays, without waiting: they are ordered on the stream, as in the libraries that
            the input came from.

        Raises:
            InvalidArgument: a shape, dtype, device or name does not fit.
            OutOfMemory: one image alone passes max_memory or the memory there is.
            DeviceError: the device failed; runs on a stream may say so at a later call.
        """
        names = [] if outputs is None else list(outputs)
        if outputs is not None and (isinstance(outputs, str) or not names):
            raise InvalidArgument(f"outputs is {outputs!r}; give a list of names, such as {self.outputs[:1]}")
        if out is not None and not wait:
            raise InvalidArgument("out goes with wait=True; on a stream such a run is not waited for anyway")
        if is_on_device(images):
            if image_size is not None:
                raise InvalidArgument("image_size goes with photographs on the host; the input has its size already")
            return self._run_on_device(images, outputs, names, out, stream, wait)
        photographs = self._photographs(images)
        if photographs is not None:
            if out is not None:
                raise InvalidArgument("out goes with a float input; photographs give a new array")
            size = _rows_and_columns(image_size)
            if not wait:
                return Pending(self._engine.start_images(photographs, names, size), _to_numpy(outputs, names))
            results = self._engine.run_images(photographs, names, size)
        else:
            if image_size is not None:
                raise InvalidArgument("image_size goes with photographs; a float input has its size already")
            pixels = _to_pixels(images)
            if out is not None:
                return self._run_into(pixels, names, out, stream)
            if not wait:
                pending = self._engine.start(_vimrt.Tensor.from_floats(pixels), names, 0)
                return Pending(pending, _to_numpy(outputs, names))
            results = self._engine.run(pixels, names)
        return _shaped(results, outputs, names)

    def classify(
        self, image: Photograph, top_k: int = 5, *, image_size: int | tuple[int, int] | None = None
    ) -> list[Prediction]:
        """The `top_k` most probable classes of one photograph, most probable first."""
        if not is_photograph(image):
            raise InvalidArgument("classify takes one photograph: a path, a PIL image or a uint8 (H, W, 3) array")
        return self.top(self.run([image], image_size=image_size)[0], top_k)

    def top(self, logits: FloatArray, top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes by one image's logits (classes,), most probable first."""
        if np.ndim(logits) != 1:
            raise InvalidArgument(f"logits have the shape {np.shape(logits)}; one image's (classes,) was expected")
        return [Prediction(label, probability) for label, probability, _ in self._engine.top(logits, top_k)]

    def preprocess(self, images: Any, *, image_size: int | tuple[int, int] | None = None) -> FloatArray:
        """Photographs, as run() takes them, to the normalised float32 (B, 3, rows, columns) that the graph reads."""
        photographs = self._photographs(images)
        if photographs is None:
            raise InvalidArgument("preprocess takes photographs: paths, PIL images or uint8 (H, W, 3) arrays")
        return self._engine.preprocess(photographs, _rows_and_columns(image_size))

    def program(
        self, batch: int = 1, image_size: int | tuple[int, int] | None = None, outputs: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The steps that really run for a size, and the memory plan, without running.

        Returns:
            "steps" (name, indices of the buffers read and written, round, branch and its images: parts of the batch,
            of which rounds run one after the other and branches of a round may run side by side), "buffers" (name,
            size in bytes, steps [begin, end), offset in the arena or -1 for the caller's own), "peak" and
            "lower_bound" in bytes.
        """
        rows, columns = _rows_and_columns(image_size) or self.image_size
        return self._engine.program(batch, rows, columns, list(outputs))

    def profile(
        self, batch: int = 1, image_size: int | tuple[int, int] | None = None, repetitions: int = 20
    ) -> Profile:
        """Times every step of a run on random pixels by itself, on a GPU by events between one step and the next.

        Returns:
            the median seconds of each step, in order. The steps are those of `program(images, image_size)`, where
            `images` is the batch, or a slice of it where the engine runs the batch in slices.
        """
        rows, columns = _rows_and_columns(image_size) or self.image_size
        if min(batch, rows, columns) < 1:
            raise InvalidArgument(f"batch {batch} and image size {rows}x{columns} must be positive")
        pixels = np.random.default_rng(0).standard_normal((batch, 3, rows, columns), dtype=np.float32)
        images, steps = self._engine.profile(pixels, repetitions)
        return Profile(images, [StepTime(name, seconds) for name, seconds in steps])

    @staticmethod
    def _photographs(images: Any) -> list[ByteArray] | None:
        """The photographs in `images`; None where it is a float tensor."""
        if is_photograph(images):
            return [to_rgb(images)]
        if isinstance(images, np.ndarray) and images.dtype == np.uint8:
            if images.ndim != 4 or images.shape[3] != 3:
                raise InvalidArgument(
                    f"the uint8 input's shape is {images.shape}; photographs are (H, W, 3) or (B, H, W, 3)"
                )
            return [np.ascontiguousarray(image) for image in images]
        if isinstance(images, list | tuple):
            return [to_rgb(image) for image in images]
        return None

    def _run_into(self, pixels: FloatArray, names: list[str], out: Any, stream: Any) -> Any:
        _check_out(names)
        if is_on_device(out):
            self._check_device(out)
            handle = current_stream(out) if stream is None else stream_handle(stream)
            result = take(out, handle, self._engine, writable=True)
            self._engine.run_tensors(_vimrt.Tensor.from_floats(pixels), names, [result], handle)
            return out
        self._engine.run_into(pixels, names, [_writable(out)])
        return out

    def _run_on_device(
        self, images: Any, outputs: Sequence[str] | None, names: list[str], out: Any, stream: Any, wait: bool
    ) -> Any:
        self._check_device(images)
        own = current_stream(images)
        handle = own if stream is None else stream_handle(stream)
        pixels = take(images, handle, self._engine)
        if out is not None:
            _check_out(names)
            if is_on_device(out):
                self._check_device(out)
                result = take(out, handle, self._engine, writable=True)
            else:
                result = _vimrt.Tensor.from_floats(_writable(out))
            self._engine.run_tensors(pixels, names, [result], handle)
            return out
        pending = self._engine.start(pixels, names, handle)
        with self._in_flight_lock:
            self._in_flight = [run for run in self._in_flight if not run[0].done()]
            if handle != own:
                self._in_flight.append((pending, pixels, images))

        def results(run: _vimrt.Pending) -> Any:
            return _shaped([DeviceArray(run, tensor) for tensor in run.tensors], outputs, names)

        return results(pending) if wait else Pending(pending, results)

    def _check_device(self, value: Any) -> None:
        index = device_index_of(value)
        if self.device == "cpu":
            raise InvalidArgument(
                f"the tensor is on another device ({'CUDA' if index is None else f'cuda:{index}'}); this engine takes "
                "host memory: move the tensor to the CPU first"
            )
        if index is not None and self.device != f"cuda:{index}":
            raise InvalidArgument(
                f"the tensor is on another device (cuda:{index}); this engine runs on {self.device}: move it there"
            )


_warned = False


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(reason, DeviceWarning, stacklevel=3)


def _library_folders(device: str) -> list[str]:
    """Where NVIDIA's wheels keep libraries, wherever on sys.path they are installed."""
    if device == "cpu":
        return []
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    parents = spec.submodule_search_locations if spec is not None else None
    return [str(folder) for parent in parents or [] for folder in sorted(Path(parent).glob("*/lib"), reverse=True)]


def _shaped(results: Sequence[Any], outputs: Sequence[str] | None, names: list[str]) -> Any:
    """One result by itself, or several by name."""
    return results[0] if outputs is None else dict(zip(names, results, strict=True))


def _to_numpy(outputs: Sequence[str] | None, names: list[str]) -> Callable[[_vimrt.Pending], Any]:
    return lambda pending: _shaped([tensor.to_array() for tensor in pending.tensors], outputs, names)


def _check_out(names: list[str]) -> None:
    if names:
        raise InvalidArgument("out goes with the default output; leave outputs away")


def _writable(out: Any) -> FloatArray:
    usable = isinstance(out, np.ndarray) and out.dtype == np.float32
    if not usable or not out.flags.c_contiguous or not out.flags.writeable:
        raise InvalidArgument("out must be a writable, dense float32 array")
    array: FloatArray = out
    return array


def _to_pixels(value: Any) -> FloatArray:
    """A float array or CPU DLPack tensor as a dense float32 array, copied only where it must be."""
    if not isinstance(value, np.ndarray):
        value = _from_dlpack(value)
    if value.dtype not in (np.float32, np.float64, np.float16):
        raise InvalidArgument(
            f"the input's dtype is {value.dtype}; give float32 (B, 3, H, W), already normalised, "
            "or photographs as uint8 (H, W, 3)"
        )
    return np.ascontiguousarray(value, dtype=np.float32)


def _from_dlpack(value: Any) -> npt.NDArray[Any]:
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        raise InvalidArgument(
            f"a {type(value).__name__} is no input; give photographs (paths, PIL images, uint8 arrays) "
            "or a float (B, 3, H, W) array or DLPack tensor"
        )
    try:
        kind, index = value.__dlpack_device__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(f"the DLPack tensor has no device: {error}; give a dense float32 tensor") from error
    if int(kind) not in _DLPACK_CPU:
        raise InvalidArgument(
            f"the tensor is on another device (DLPack kind {int(kind)}, index {index}); this engine takes host memory: "
            "move the tensor to the CPU first"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(f"the DLPack tensor cannot be read: {error}; give a dense float32 tensor") from error


def _rows_and_columns(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    try:
        pair = (image_size, image_size) if isinstance(image_size, SupportsIndex) else image_size
        rows, columns = (operator.index(side) for side in pair)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"image_size is {image_size!r}; give a whole number, or rows and columns") from error
    if max(rows, columns) > _INT64_MAX:
        raise InvalidArgument(f"image_size is {image_size!r}; that is more than any image has")
    return rows, columns


def _limit(name: str, value: int | None, most: int) -> int:
    """The value of an option, 0 for None."""
    if value is None:
        return 0
    if not isinstance(value, SupportsIndex) or not 1 <= operator.index(value) <= most:
        raise InvalidArgument(f"{name} is {value!r}; give a whole number from 1 to {most}, or None")
    return operator.index(value)

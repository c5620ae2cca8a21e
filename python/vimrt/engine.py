"""The engine as Python users meet it: whatever an image may be, in; NumPy, out."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from . import _vimrt
from ._vimrt import InvalidArgument
from .images import ByteArray, Photograph, is_photograph, to_rgb

FloatArray: TypeAlias = npt.NDArray[np.float32]

_INT64_MAX = 2**63 - 1
_DLPACK_CPU = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost: memory that the host reads directly


class Prediction(NamedTuple):
    """One class of a classification: its label and its softmax probability."""

    label: str
    probability: float


class Engine:
    """A model, loaded once and run from any number of threads.

    Args:
        path: a .vimrt file.
        device: "auto", "cpu", "cuda" or "cuda:N".
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
        self._engine = _vimrt.Engine(os.fsencode(path), device, dtype, threads, max_memory)

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
        self, images: Any, outputs: None = None, *, image_size: int | tuple[int, int] | None = None, out: None = None
    ) -> FloatArray: ...
    @overload
    def run(
        self,
        images: Any,
        outputs: Sequence[str],
        *,
        image_size: int | tuple[int, int] | None = None,
        out: None = None,
    ) -> dict[str, FloatArray]: ...
    @overload
    def run(self, images: Any, outputs: None = None, *, image_size: None = None, out: FloatArray) -> FloatArray: ...

    def run(
        self,
        images: Any,
        outputs: Sequence[str] | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray | dict[str, FloatArray]:
        """Runs the model.

        Args:
            images: photographs: a path, a PIL image, a uint8 array (H, W, 3) or (B, H, W, 3), or a list of any of
                these, of any sizes, preprocessed by the file's recipe. Or a float array or CPU DLPack tensor
                (B, 3, H, W), taken as already normalised, of any H and W the graph allows; float32 that is dense
                is not copied.
            outputs: names of results ("logits", "features", "tokens", or any value of the graph).
            image_size: for photographs: another size than the recipe's, N or (rows, columns).
            out: for a float input and the default output: a dense float32 array that receives the result. With it, a
                run of a size seen before allocates nothing.

        Returns:
            float32 logits (B, classes); with `outputs`, a dict by name.

        Raises:
            InvalidArgument: a shape, dtype or name does not fit.
            OutOfMemory: one image alone passes max_memory or the memory there is.
        """
        names = [] if outputs is None else list(outputs)
        if outputs is not None and (isinstance(outputs, str) or not names):
            raise InvalidArgument(f"outputs is {outputs!r}; give a list of names, such as {self.outputs[:1]}")
        photographs = self._photographs(images)
        if photographs is not None:
            if out is not None:
                raise InvalidArgument("out goes with a float input; photographs give a new array")
            results = self._engine.run_images(photographs, names, _rows_and_columns(image_size))
        else:
            if image_size is not None:
                raise InvalidArgument("image_size goes with photographs; a float input has its size already")
            pixels = _to_pixels(images)
            if out is not None:
                return self._run_into(pixels, names, out)
            results = self._engine.run(pixels, names)
        return results[0] if outputs is None else dict(zip(names, results, strict=True))

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
            "steps" (name, indices of the buffers read and written), "buffers" (name, size in bytes, steps
            [begin, end), offset in the arena or -1 for the caller's own), "peak" and "lower_bound" in bytes.
        """
        rows, columns = _rows_and_columns(image_size) or self.image_size
        return self._engine.program(batch, rows, columns, list(outputs))

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

    def _run_into(self, pixels: FloatArray, names: list[str], out: FloatArray) -> FloatArray:
        if names:
            raise InvalidArgument("out goes with the default output; leave outputs away")
        usable = isinstance(out, np.ndarray) and out.dtype == np.float32
        if not usable or not out.flags.c_contiguous or not out.flags.writeable:
            raise InvalidArgument("out must be a writable, dense float32 array")
        self._engine.run_into(pixels, names, [out])
        return out


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

"""Compares a .vimrt file, run by an engine, with the PyTorch reference on the checkpoint it was exported from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .checkpoint import Checkpoint, read_checkpoint, sha256_of
from .config import VimConfig
from .errors import ExportError
from .report import check_tensors

if TYPE_CHECKING:
    import torch

#: Relative L2 error that passes in fp32 on the CPU, where only the order of additions differs, ...
TOLERANCE_FP32_CPU = 1e-5
#: ... and with 16-bit weights or on a GPU, where 16-bit rounding costs 1e-3 to 1.7e-3.
TOLERANCE_OTHERWISE = 2e-3


class Engine(Protocol):
    """What verification needs of `vimrt.Engine`."""

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or another."""
        ...

    def run(self, images: npt.NDArray[np.float32], outputs: Sequence[str]) -> Mapping[str, npt.NDArray[Any]]:
        """Values of the graph by name, for normalised images (batch, 3, height, width)."""
        ...


@dataclass(frozen=True)
class Comparison:
    """One value of the graph: its name, and the L2 norm of engine minus reference over that of the reference.

    The error is infinite where the engine's value has another shape or is not finite.
    """

    name: str
    error: float
    passed: bool


@dataclass(frozen=True)
class VerifyReport:
    """The comparison of every block and output, in the order of computation.

    `same_source` says whether the checkpoint is the very file that the model was exported from.
    """

    model: Path
    checkpoint: Path
    same_source: bool
    batch: int
    image_size: tuple[int, int]
    tolerance: float
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance."""
        return all(comparison.passed for comparison in self.comparisons)

    @property
    def first_mismatch(self) -> str | None:
        """The first value, in the order of computation, whose error is beyond the tolerance."""
        return next((comparison.name for comparison in self.comparisons if not comparison.passed), None)

    def to_json(self) -> str:
        """The report as one JSON object; an infinite error is null."""
        values = dataclasses.asdict(self) | {"passed": self.passed, "first_mismatch": self.first_mismatch}
        for comparison in values["comparisons"]:
            comparison["error"] = comparison["error"] if math.isfinite(comparison["error"]) else None
        return json.dumps(values, default=str)


def verify(
    model: str | Path,
    checkpoint: str | Path,
    *,
    engine: Engine | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch: int = 1,
    seed: int = 0,
    tolerance: float | None = None,
) -> VerifyReport:
    """Runs engine and reference on the same random images and compares every block and output.

    Args:
        model: the .vimrt file.
        checkpoint: the checkpoint it was exported from. The reference computes in fp32 with its weights as they are.
        engine: what runs the model; None is `vimrt.Engine(model)`.
        image_size: pixels, or rows and columns; None takes the file's.
        batch: number of images.
        seed: of the random images.
        tolerance: relative L2 error that passes; None is 1e-5 for fp32 matrices on the CPU and 2e-3 otherwise.

    Raises:
        ExportError: a file cannot be read, the model was not written by `vimrt export`, or the checkpoint does not
            have its tensors.
    """
    _require_packages()
    model_path, checkpoint_path = Path(model), Path(checkpoint)
    file = _ModelFile.read(model_path)
    read = read_checkpoint(checkpoint_path, file.weights)
    check_tensors(checkpoint_path.name, read.tensors, file.config)
    size = _size(file, image_size)
    if engine is None:
        engine = _load_engine(model_path)
    if tolerance is None:
        tolerance = TOLERANCE_FP32_CPU if file.dtype == "F32" and engine.device == "cpu" else TOLERANCE_OTHERWISE
    images = _random_images(batch, size, seed)
    expected = _reference(file.config, read, images)
    names = [name for name in _compared(file.config) if name in file.values and name in expected]
    found = engine.run(images, outputs=names)
    return VerifyReport(
        model=model_path,
        checkpoint=checkpoint_path,
        same_source=sha256_of(checkpoint_path) == file.source_sha256,
        batch=batch,
        image_size=size,
        tolerance=tolerance,
        comparisons=tuple(_compare(name, found[name], expected[name], tolerance) for name in names),
    )


def _require_packages() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ExportError(f"verify needs PyTorch and safetensors: pip install 'vimrt[export]' ({error})") from error


def _load_engine(path: Path) -> Engine:
    from .. import Engine as VimrtEngine

    return VimrtEngine(path)


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """L2 norm of `found - expected` over that of `expected`, in fp64; infinite for another shape or NaN."""
    if found.shape != expected.shape:
        return math.inf
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    scale = np.linalg.norm(expected.astype(np.float64).ravel())
    if not np.isfinite(difference):
        return math.inf
    if scale == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / scale)


@dataclass(frozen=True)
class _ModelFile:
    """What a .vimrt file says about its origin."""

    config: VimConfig
    weights: str | None
    dtype: str
    image_size: tuple[int, int]
    source_sha256: str
    values: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> _ModelFile:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                dtype = file.get_slice("layers.0.mixer.in_proj.weight").get_dtype()
            model = json.loads(metadata["model"])
            graph = json.loads(metadata["graph"])
            rows, columns = json.loads(metadata["preprocessing"])["image_size"]
            return cls(
                config=VimConfig.from_json(json.dumps(model["config"])),
                weights=model["weights"],
                dtype=dtype,
                image_size=(rows, columns),
                source_sha256=json.loads(metadata["provenance"])["source_sha256"],
                values=frozenset(output for node in graph["nodes"] for output in node["outputs"]),
            )
        except OSError as error:
            raise ExportError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ExportError(
                f"{path.name}: does not say which model it holds ({type(error).__name__}: {error}); "
                "verify takes a .vimrt file written by vimrt export"
            ) from error


def _size(file: _ModelFile, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        return file.image_size
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        file.config.grid_of(*size)
    except ValueError as error:
        raise ExportError(f"--image-size: {error}") from error
    return size


def _compared(config: VimConfig) -> list[str]:
    """Names of the values to compare, in the order of computation.

    The residual stream that enters block i is what blocks 0 to i - 1 have added up.
    """
    residuals = [f"layers.{i}.residual" for i in range(1, config.depth)]
    return ["tokens_in", *residuals, "tokens", "features", "logits"]


def _random_images(batch: int, size: tuple[int, int], seed: int) -> npt.NDArray[np.float32]:
    from .reference import random_images

    images: npt.NDArray[np.float32] = random_images(batch, *size, seed).numpy()
    return images


def _reference(
    config: VimConfig, checkpoint: Checkpoint, images: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    import torch

    from .reference import VisionMamba

    state = {name: _torch_tensor(tensor.to("F32").data) for name, tensor in checkpoint.tensors.items()}
    model = VisionMamba.from_state_dict(config, state)
    with torch.inference_mode():
        values = model.intermediates(torch.from_numpy(images))
    return {name: value.numpy() for name, value in values.items()}


def _torch_tensor(data: npt.NDArray[Any] | None) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(data))


def _compare(name: str, found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> Comparison:
    error = relative_error(np.asarray(found), expected)
    return Comparison(name, error, error <= tolerance)

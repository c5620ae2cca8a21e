"""From a checkpoint to a .vimrt file: read, recognise, check, cast, write."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from .checkpoint import Checkpoint, read_checkpoint, sha256_of
from .config import VimConfig
from .errors import ExportError
from .graph import build_graph
from .recognise import Choices, Recognised, Row, recognise
from .report import Difference, check_tensors, raise_differences
from .tensor import Tensor
from .writer import write_safetensors

#: The published models' preprocessing: ImageNet's statistics, and 224 of 256 pixels.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP = 0.875

FORMAT_VERSION = 1

DTypeName = Literal["fp32", "fp16", "bf16"]
#: Called with what is under way ("reading", "converting", "writing"), bytes done and bytes in all.
Progress = Callable[[str, int, int], None]

_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_DTYPE_NAMES = {element: name for name, element in _DTYPES.items()}
_MATRICES = (
    "patch_embed.proj.weight",
    "head.weight",
    ".in_proj.weight",
    ".x_proj.weight",
    ".x_proj_b.weight",
    ".dt_proj.weight",
    ".dt_proj_b.weight",
    ".out_proj.weight",
)


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        source: the checkpoint, and the SHA-256 of its bytes in hexadecimal.
        output: the file written, its size in bytes and its SHA-256.
        config: the model.
        rows: what was recognised, and from what.
        dtype: element type of the matrices; small parameters are fp32.
        tensors: number of tensors.
        parameters: number of values in them.
        image_size: rows and columns that photographs are brought to.
        labels: number of class labels, 0 without any.
    """

    source: Path
    source_sha256: str
    output: Path
    size: int
    sha256: str
    config: VimConfig
    rows: tuple[Row, ...]
    dtype: str
    tensors: int
    parameters: int
    image_size: tuple[int, int]
    labels: int

    def to_json(self) -> str:
        """The report as one JSON object, paths as text."""
        return json.dumps(dataclasses.asdict(self), default=str, ensure_ascii=False)


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    weights: Literal["model", "model_ema"] | None = None,
    class_token: Literal["middle", "head", "tail"] | None = None,
    pool: Literal["mean", "max", "last"] | None = None,
    merge: Literal["mean", "sum"] | None = None,
    stride: int | None = None,
    first_entry: bool = False,
    image_size: int | tuple[int, int] | None = None,
    labels: str | Path | Sequence[str] | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    crop: float = CROP,
    dtype: DTypeName | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Exports a Vim checkpoint to a .vimrt file, as docs/file-format.md describes it.

    Args:
        checkpoint: a .pth, .pt (both need PyTorch) or .safetensors file.
        output: the file to write; it appears, or is replaced, only when everything has worked.
        weights: which state dict of a training checkpoint; None takes "model" where there is one.
        class_token, pool, merge, stride, first_entry: what no tensor tells, as in `Choices`; None and False take the
            published models' values.
        image_size: pixels, or rows and columns, that photographs are brought to; None is the trained size.
        labels: names of the classes in order, or a UTF-8 text file with one on each line.
        mean, std: of the red, green and blue values in 0..1 that the model was trained with.
        crop: side of the central part of a resized photograph that is kept, above 0 and at most 1.
        dtype: element type of the matrices; None keeps the checkpoint's. Norms, convolutions, biases, A, D, positions
            and class tokens are always fp32.
        progress: called while bytes are read, converted and written.

    Raises:
        ExportError: the checkpoint cannot be read or is no Vim model, an option contradicts it, a value is not finite
            or beyond the range of `dtype`, or the output cannot be written. No output file is left then.
    """
    source, target = Path(checkpoint), Path(output)
    _check_output(source, target)
    recipe = _Recipe(tuple(mean), tuple(std), crop)
    read = read_checkpoint(source, weights)
    choices = Choices(class_token, pool, merge, stride, first_entry)
    recognised = recognise(source.name, read.tensors, choices)
    check_tensors(source.name, read.tensors, recognised.config)
    size = _image_size(source.name, recognised.config, image_size)
    names = _labels(labels, recognised.config.classes)
    element = _element_type(source.name, read, dtype)
    tensors = _convert(source.name, read.tensors, element, _stage(progress, "converting"))
    source_sha256 = sha256_of(source, _stage(progress, "reading"))
    metadata = {
        "format": "vimrt",
        "format_version": str(FORMAT_VERSION),
        "graph": _json(build_graph(recognised.config)),
        "preprocessing": _json(recipe.preprocessing(size)),
        "model": _json(_model(recognised, read)),
        "provenance": _json(
            {"source": source.name, "source_sha256": source_sha256, "exporter": f"vimrt {__version__}"}
        ),
    }
    if names:
        metadata["labels"] = _json(names)
    written = write_safetensors(target, tensors, metadata, _stage(progress, "writing"))
    return ExportReport(
        source=source,
        source_sha256=source_sha256,
        output=target,
        size=written.size,
        sha256=written.sha256,
        config=recognised.config,
        rows=recognised.rows,
        dtype=_DTYPE_NAMES[element],
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        image_size=size,
        labels=len(names),
    )


@dataclass(frozen=True)
class _Recipe:
    """The checked constants of preprocessing."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float

    def __post_init__(self) -> None:
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ExportError(f"{option} is {values}; give three numbers, for red, green and blue in 0..1")
        if min(self.std) <= 0:
            raise ExportError(f"--std is {self.std}; give numbers above zero")
        if not 0 < self.crop <= 1:
            raise ExportError(f"--crop is {self.crop}; give a number above 0 and at most 1")

    def preprocessing(self, image_size: tuple[int, int]) -> dict[str, Any]:
        return {
            "image_size": list(image_size),
            "crop": self.crop,
            "interpolation": "bicubic",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def _check_output(source: Path, target: Path) -> None:
    if target.is_dir():
        raise ExportError(
            f"{target}: is a folder; give the name of the file to write, such as {target / 'model.vimrt'}"
        )
    if not target.parent.is_dir():
        raise ExportError(f"{target}: the folder {target.parent} does not exist; create it first")
    if target.exists() and source.exists() and target.samefile(source):
        raise ExportError(f"{target}: is the checkpoint itself; give another name for the output")


def _image_size(file: str, config: VimConfig, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        return config.image_size
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        config.grid_of(*size)
    except ValueError as error:
        raise ExportError(f"{file}: --image-size: {error}") from error
    return size


def _labels(labels: str | Path | Sequence[str] | None, classes: int) -> list[str]:
    if labels is None:
        return []
    origin = "labels"
    if isinstance(labels, (str, Path)):
        origin = str(labels)
        try:
            names = Path(labels).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"{origin}: cannot be read as UTF-8 text: {error}") from error
    else:
        names = list(labels)
    names = [name.strip() for name in names]
    if len(names) != classes:
        raise ExportError(f"{origin}: has {len(names)} labels, but the model has {classes} classes; give one for each")
    if "" in names:
        raise ExportError(f"{origin}: line {names.index('') + 1} is empty; give each class a label")
    return names


def _element_type(file: str, checkpoint: Checkpoint, dtype: DTypeName | None) -> str:
    """Element type of the matrices in the file; double precision becomes fp32."""
    if dtype is None:
        own = checkpoint.tensors["layers.0.mixer.in_proj.weight"].dtype
        return "F32" if own == "F64" else own
    if dtype not in _DTYPES:
        raise ExportError(f"{file}: --dtype is {dtype!r}; give one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _convert(
    file: str, tensors: Mapping[str, Tensor], element: str, progress: Callable[[int, int], None] | None
) -> dict[str, Tensor]:
    """Every tensor in the element type of the file. Raises ExportError listing all that are not finite in it."""
    converted: dict[str, Tensor] = {}
    not_finite: list[Difference] = []
    overflowing: list[Difference] = []
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    for name, tensor in tensors.items():
        target = element if name.endswith(_MATRICES) else "F32"
        converted[name] = tensor.to(target)
        if not tensor.is_finite():
            not_finite.append(Difference(name, _count_not_finite(tensor)))
        elif converted[name] is not tensor and not converted[name].is_finite():
            largest = np.abs(tensor.values()).max()
            overflowing.append(Difference(name, f"reaches {largest:.6g}, beyond {_DTYPE_NAMES[target]}"))
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    raise_differences(f"{file}: has values that are NaN or infinite", {"not finite": not_finite})
    advice = {"F16": "; export with --dtype bf16 or fp32", "BF16": "; export with --dtype fp32", "F32": ""}[element]
    raise_differences(f"{file}: has values out of range{advice}", {"overflow": overflowing})
    return converted


def _count_not_finite(tensor: Tensor) -> str:
    return f"({np.count_nonzero(~np.isfinite(tensor.values()))} of {math.prod(tensor.shape)} values)"


def _model(recognised: Recognised, checkpoint: Checkpoint) -> dict[str, Any]:
    """What `vimrt verify` needs to rebuild the reference."""
    return {
        "config": json.loads(recognised.config.to_json()),
        "weights": checkpoint.weights,
        "recognised": [[row.name, row.value, row.source] for row in recognised.rows],
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None

    def report(done: int, total: int) -> None:
        progress(stage, done, total)

    return report

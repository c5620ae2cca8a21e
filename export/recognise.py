"""Recognises a Vim model from its checkpoint's tensors.

Sizes are read off the shapes. Several tensors tell each size, and the most common answer is taken, so one misshapen
tensor does not hide behind a wrong recognition: it is reported against the model that all others make.
What no tensor tells (`Choices`) has the published models' value unless the caller says otherwise.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .config import ClassToken, Merge, Mixer, Pool, VimConfig
from .errors import ExportError
from .tensor import Tensor

#: Blocks are numbered without leading zeros; four digits bound what a stray name can make of the depth.
_BLOCK = re.compile(r"layers\.(0|[1-9]\d{0,3})\.(.+)", re.DOTALL)

#: Tensors that tell a size, each with the axis; "layers.*." is every block.
_DIMENSIONS: dict[str, tuple[tuple[str, int], ...]] = {
    "d_model": (
        ("layers.*.mixer.out_proj.weight", 0),
        ("layers.*.mixer.in_proj.weight", 1),
        ("layers.*.norm.weight", 0),
        ("patch_embed.proj.weight", 0),
        ("norm_f.weight", 0),
    ),
    "d_inner": (
        ("layers.*.mixer.out_proj.weight", 1),
        ("layers.*.mixer.A_log", 0),
        ("layers.*.mixer.D", 0),
        ("layers.*.mixer.conv1d.weight", 0),
    ),
    "d_state": (("layers.*.mixer.A_log", 1),),
    "dt_rank": (("layers.*.mixer.dt_proj.weight", 1),),
    "d_conv": (("layers.*.mixer.conv1d.weight", 2),),
    "patch_rows": (("patch_embed.proj.weight", 2),),
    "patch_columns": (("patch_embed.proj.weight", 3),),
    "classes": (("head.weight", 0), ("head.bias", 0)),
}
_OWN_BACKWARD = ("conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias", "D_b")
_DEFAULT = "default of the published models"


@dataclass(frozen=True)
class Choices:
    """What no tensor tells. None takes the published models' value.

    Attributes:
        class_token: where a single cls_token stands: "middle" (default), "head" or "tail".
        pool: what the head sees, "mean", "max" or "last"; by default the class token, or the last token without one.
        merge: whether the sum of the two directions is halved, "mean" (default) or "sum".
        stride: distance between patches in pixels; by default what makes a trained size of 224 for 16x16 patches on
            a 27x27 grid (8), otherwise the patch size.
        first_entry: at another resolution, resample pos_embed as if its first entries were the class tokens'.
    """

    class_token: Literal["middle", "head", "tail"] | None = None
    pool: Literal["mean", "max", "last"] | None = None
    merge: Merge | None = None
    stride: int | None = None
    first_entry: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table of what was recognised: what, its value, and the tensor or option that told it."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Recognised:
    """The model and how each of its properties was found."""

    config: VimConfig
    rows: tuple[Row, ...]


def recognise(file: str, tensors: Mapping[str, Tensor], choices: Choices = Choices()) -> Recognised:
    """The model that `tensors` make with `choices`; `file` names the checkpoint in errors.

    The tensors may still be incomplete or misshapen: `report.check_tensors` compares them with the model. Raises
    ExportError where they are not a Vim model at all, or contradict a choice.
    """
    return _Recogniser(file, tensors, choices).recognise()


class _Recogniser:
    def __init__(self, file: str, tensors: Mapping[str, Tensor], choices: Choices) -> None:
        self._file, self._tensors, self._choices = file, tensors, choices
        self._rows: list[Row] = []
        self._blocks: set[int] = set()
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        for name, tensor in tensors.items():
            match = _BLOCK.fullmatch(name)
            if match:
                self._blocks.add(int(match[1]))
                name = f"layers.*.{match[2]}"
            self._shapes.setdefault(name, []).append(tensor.shape)

    def recognise(self) -> Recognised:
        depth = self._depth()
        d_model = self._size("d_model", None)
        d_inner = self._size("d_inner", 2 * d_model)
        d_state = self._size("d_state", 16)
        dt_rank = self._size("dt_rank", math.ceil(d_model / 16))
        d_conv = self._size("d_conv", 4)
        classes = self._size("classes", 1000)
        patch_size = (self._size("patch_rows", 16), self._size("patch_columns", 16))
        rope = self._has("rope.freqs_cos", "rope.freqs_sin")
        self._row("rope", "yes" if rope else "no", "rope.freqs_cos" if rope else "no rope.freqs_cos")
        class_token = self._class_token()
        grid = self._grid(class_token, rope)
        stride = self._stride(patch_size, grid)
        mixer = self._mixer()
        try:
            config = VimConfig(
                d_model=d_model,
                depth=depth,
                d_inner=d_inner,
                d_state=d_state,
                dt_rank=dt_rank,
                d_conv=d_conv,
                classes=classes,
                patch_size=patch_size,
                stride=stride,
                grid=grid,
                class_token=class_token,
                position_embedding="pos_embed" in self._tensors or not rope,
                mixer=mixer,
                merge=self._merge(mixer),
                pool=self._pool(class_token),
                norm=self._norm(),
                layer_scale=self._layer_scale(),
                rope=rope,
                first_entry=self._first_entry(class_token),
            )
        except ValueError as error:
            raise ExportError(f"{self._file}: {error}") from error
        return Recognised(config, tuple(self._rows))

    def _row(self, name: str, value: object, source: str) -> None:
        self._rows.append(Row(name, str(value), source))

    def _has(self, *patterns: str) -> bool:
        return any(pattern in self._shapes for pattern in patterns)

    def _depth(self) -> int:
        if not any(pattern.startswith("layers.*.mixer.") for pattern in self._shapes):
            names = ", ".join(f"{name[:80]!r}" for name in list(self._tensors)[:3])
            raise ExportError(
                f"{self._file}: is not a Vision Mamba checkpoint: no tensor is named like "
                f"'layers.0.mixer.in_proj.weight'; its {len(self._tensors)} tensors begin with {names}"
            )
        depth = max(self._blocks) + 1
        self._row("depth", depth, "layers.*")
        return depth

    def _size(self, name: str, default: int | None) -> int:
        """The most common answer of the tensors that tell `name`; the earlier in the table wins a tie."""
        votes: Counter[int] = Counter()
        sources: dict[int, str] = {}
        for pattern, axis in _DIMENSIONS[name]:
            for shape in self._shapes.get(pattern, ()):
                if axis < len(shape) and shape[axis] > 0:
                    votes[shape[axis]] += 1
                    sources.setdefault(shape[axis], f"{pattern}, axis {axis}")
        if votes:
            value = votes.most_common(1)[0][0]
            self._row(name, value, sources[value])
            return value
        if default is None:
            raise ExportError(f"{self._file}: is not a Vision Mamba checkpoint: no tensor tells its width D")
        self._row(name, default, _DEFAULT)
        return default

    def _class_token(self) -> ClassToken:
        chosen = self._choices.class_token
        if self._has("cls_token"):
            self._row("class_token", chosen or "middle", "--class-token" if chosen else f"cls_token; {_DEFAULT}")
            return chosen or "middle"
        ends = self._has("cls_token_head", "cls_token_tail")
        if chosen is not None:
            found = "cls_token_head and cls_token_tail, one at each end" if ends else "no class token"
            raise ExportError(f"{self._file}: has {found}; leave out --class-token {chosen}")
        self._row("class_token", "ends" if ends else "none", "cls_token_head" if ends else "no cls_token")
        return "ends" if ends else "none"

    def _grid(self, class_token: ClassToken, rope: bool) -> tuple[int, int]:
        """The trained grid, a square of as many patches as the position table has entries for.

        A table of any other length is compared with the nearest square's.
        """
        class_tokens = {"none": 0, "ends": 2}.get(class_token, 1)
        patches, source = 14 * 14, _DEFAULT
        if "pos_embed" in self._tensors:
            shape = self._tensors["pos_embed"].shape
            if len(shape) == 3:
                patches, source = shape[1] - class_tokens, "pos_embed, axis 1"
        elif rope:
            table = self._tensors.get("rope.freqs_cos") or self._tensors["rope.freqs_sin"]
            if len(table.shape) == 2:
                patches, source = table.shape[0], "rope.freqs_cos, axis 0"
        side = max(1, round(math.sqrt(max(0, patches))))
        self._row("grid", f"{side}x{side}", source)
        return side, side

    def _stride(self, patch_size: tuple[int, int], grid: tuple[int, int]) -> int:
        chosen = self._choices.stride
        if chosen is not None:
            self._row("stride", chosen, "--stride")
            return chosen
        if patch_size == (16, 16) and grid in ((14, 14), (27, 27)):
            stride = 16 if grid == (14, 14) else 8
            self._row("stride", stride, f"{grid[0]}x{grid[1]} grid at 224x224")
            return stride
        if patch_size[0] != patch_size[1]:
            rows, columns = patch_size
            raise ExportError(f"{self._file}: patches are {rows}x{columns}, so the stride must be given: --stride N")
        self._row("stride", patch_size[0], "patch size")
        return patch_size[0]

    def _mixer(self) -> Mixer:
        own = next((role for role in _OWN_BACKWARD if self._has(f"layers.*.mixer.{role}")), None)
        if own is not None:
            self._row("mixer", "v2", f"layers.*.mixer.{own}")
            return "v2"
        if self._has("layers.*.mixer.A_b_log"):
            self._row("mixer", "v1", "layers.*.mixer.A_b_log, no other *_b")
            return "v1"
        self._row("mixer", "none (forward only)", "no *_b tensor")
        return "none"

    def _merge(self, mixer: Mixer) -> Merge:
        chosen = self._choices.merge
        if mixer == "v2":
            self._row("merge", chosen or "mean", "--merge" if chosen else _DEFAULT)
            return chosen or "mean"
        if chosen == "mean":
            why = "adds its directions without dividing" if mixer == "v1" else "has one direction only"
            raise ExportError(f"{self._file}: mixer {mixer} {why}; leave out --merge mean")
        self._row("merge", "sum", f"mixer {mixer}")
        return "sum"

    def _pool(self, class_token: ClassToken) -> Pool:
        if self._choices.pool is not None:
            self._row("pool", self._choices.pool, "--pool")
            return self._choices.pool
        pool: Pool = "last" if class_token == "none" else "token"
        self._row("pool", pool, f"class_token {class_token}; {_DEFAULT}")
        return pool

    def _norm(self) -> Literal["rms", "layer"]:
        bias = next((name for name in ("layers.*.norm.bias", "norm_f.bias") if self._has(name)), None)
        self._row("norm", "rms" if bias is None else "layer", bias or "no layers.*.norm.bias")
        return "rms" if bias is None else "layer"

    def _layer_scale(self) -> bool:
        found = self._has("layers.*.mixer.gamma")
        name = "layers.*.mixer.gamma"
        self._row("layer_scale", "yes" if found else "no", name if found else f"no {name}")
        return found

    def _first_entry(self, class_token: ClassToken) -> bool:
        chosen = self._choices.first_entry
        if chosen and class_token == "none":
            raise ExportError(f"{self._file}: has no class token; leave out --first-entry")
        self._row("first_entry", "yes" if chosen else "no", "--first-entry" if chosen else _DEFAULT)
        return chosen

"""What makes one Vision Mamba (Vim) model differ from another, and the tensors that follow from it.

Symbols are those of Vim (arXiv 2401.09417): D model width, E inner width, N state size, R rank of the
time step, W convolution width, M patches, T tokens (patches and class tokens), L blocks. This module
needs neither torch nor NumPy.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

ClassToken = Literal["middle", "head", "tail", "ends", "none"]
Mixer = Literal["v2", "v1", "none"]
Merge = Literal["mean", "sum"]
Pool = Literal["token", "mean", "max", "last"]
Norm = Literal["rms", "layer"]

_POSITIVE = ("d_model", "depth", "d_inner", "d_state", "dt_rank", "d_conv", "stride", "channels", "classes")
_PAIRS = ("patch_size", "grid")


@dataclass(frozen=True)
class VimConfig:
    """Shapes and variant of one Vim model.

    Attributes:
        d_model: model width D.
        depth: number of blocks L.
        d_inner: inner width E of a block, 2 D in the published models.
        d_state: state size N.
        dt_rank: rank R of the time step's projection, ceil(D / 16) in the published models.
        d_conv: width W of the depthwise convolution.
        patch_size: rows and columns of a patch, in pixels.
        stride: distance between patches, in pixels, along both axes.
        channels: colour channels of the input.
        classes: number of logits.
        grid: rows and columns of patches that the position embedding and the rope tables were trained on.
        class_token: where class tokens stand in the sequence: one at index M // 2 ("middle"), one at either
            end ("head", "tail"), one at each end ("ends": cls_token_head and cls_token_tail), or "none".
        position_embedding: whether there is a pos_embed table.
        mixer: "v2" gives the backward direction its own parameters, "v1" gives it its own A alone, "none" is
            the forward-only Mamba block.
        merge: "mean" halves the sum of the two directions, "sum" does not. Mixer "v1" always sums; mixer
            "none" has nothing to merge.
        pool: what the head sees: the class token (the mean of both with "ends"), the mean over all tokens, the
            last token, or with "max" every token, of whose logits the maximum is taken.
        norm: "rms" (no bias) or "layer" (with bias).
        norm_eps: the constant under the root of every norm.
        layer_scale: whether each block's output is multiplied by a vector gamma.
        rope: whether tokens are rotated by their place in the grid before each block.
        first_entry: at another resolution, take the first entries of pos_embed for the class tokens', wherever
            those stand in the sequence, as some fine-tuning scripts do.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    d_model: int
    depth: int
    d_inner: int
    d_state: int
    dt_rank: int
    d_conv: int = 4
    patch_size: tuple[int, int] = (16, 16)
    stride: int = 16
    channels: int = 3
    classes: int = 1000
    grid: tuple[int, int] = (14, 14)
    class_token: ClassToken = "middle"
    position_embedding: bool = True
    mixer: Mixer = "v2"
    merge: Merge = "mean"
    pool: Pool = "token"
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    layer_scale: bool = False
    rope: bool = False
    first_entry: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            _check_positive(name, getattr(self, name))
        for name in _PAIRS:
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"{name} is {pair!r}; give a tuple of rows and columns")
            _check_positive(f"{name} rows", pair[0])
            _check_positive(f"{name} columns", pair[1])
        hints = get_type_hints(type(self))
        for name in ("class_token", "mixer", "merge", "pool", "norm"):
            allowed = get_args(hints[name])
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be above zero")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.pool == "token" and self.class_token == "none":
            raise ValueError("pool is 'token' but class_token is 'none'; pool by 'mean', 'max' or 'last' instead")
        if self.mixer == "v1" and self.merge != "sum":
            raise ValueError("mixer 'v1' adds its directions without dividing; set merge to 'sum'")
        if self.rope and self.class_token != "none":
            raise ValueError(f"rope turns patches only, but class_token is {self.class_token!r}; set it to 'none'")
        if self.rope and self.d_model % 4 != 0:
            raise ValueError(f"rope needs a d_model divisible by 4, for pairs along two axes; it is {self.d_model}")

    @classmethod
    def of_width(cls, d_model: int, depth: int = 24, **changes: Any) -> VimConfig:
        """The published proportions at width D: E = 2 D, N = 16, R = ceil(D / 16); `changes` name other fields."""
        derived: dict[str, Any] = {"d_inner": 2 * d_model, "d_state": 16, "dt_rank": -(-d_model // 16)}
        return cls(d_model=d_model, depth=depth, **(derived | changes))

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns, in pixels, of the smallest image that gives `grid`: the size it was trained at."""
        (rows, columns), (height, width) = self.grid, self.patch_size
        return (rows - 1) * self.stride + height, (columns - 1) * self.stride + width

    @property
    def patches(self) -> int:
        """Number M of patches at the trained size."""
        return self.grid[0] * self.grid[1]

    @property
    def class_tokens(self) -> int:
        """Number of class tokens: 0, 1 or 2."""
        return {"none": 0, "ends": 2}.get(self.class_token, 1)

    @property
    def tokens(self) -> int:
        """Number T of tokens at the trained size."""
        return self.patches + self.class_tokens

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of `height` by `width` pixels.

        Pixels beyond the last whole patch are left out, as a convolution without padding does.

        Raises:
            ValueError: the image is smaller than one patch.
        """
        rows, columns = self.patch_size
        if height < rows or width < columns:
            raise ValueError(
                f"the image is {height}x{width} pixels (rows x columns), less than one patch of {rows}x{columns}; "
                "give a larger image"
            )
        return (height - rows) // self.stride + 1, (width - columns) // self.stride + 1

    def class_token_indices(self, patches: int) -> tuple[int, ...]:
        """Where the class tokens stand in a sequence that has `patches` patches, in ascending order."""
        return {
            "middle": (patches // 2,),
            "head": (0,),
            "tail": (patches,),
            "ends": (0, patches + 1),
            "none": (),
        }[self.class_token]

    def to_json(self) -> str:
        """The configuration as one JSON object; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> VimConfig:
        """The configuration that `to_json` wrote.

        Raises:
            ValueError: the text is not a JSON object, lacks a field, has one that this version does not know, or
                a value is out of range.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a Vim configuration is a JSON object, but this is a {type(values).__name__}")
        fields = dataclasses.fields(cls)
        unknown = sorted(values.keys() - {field.name for field in fields})
        missing = sorted({field.name for field in fields if field.default is dataclasses.MISSING} - values.keys())
        if unknown or missing:
            raise ValueError(
                "not a Vim configuration of this version: "
                f"unknown fields: {', '.join(unknown) or 'none'}; missing fields: {', '.join(missing) or 'none'}"
            )
        for name in _PAIRS:
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


def expected_tensors(config: VimConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a checkpoint of this model, in the order of the forward pass."""
    width, patch = config.d_model, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, config.channels, *patch),
        "patch_embed.proj.bias": (width,),
    }
    if config.class_token == "ends":
        shapes["cls_token_head"] = shapes["cls_token_tail"] = (1, 1, width)
    elif config.class_token != "none":
        shapes["cls_token"] = (1, 1, width)
    if config.position_embedding:
        shapes["pos_embed"] = (1, config.tokens, width)
    if config.rope:
        shapes["rope.freqs_cos"] = shapes["rope.freqs_sin"] = (config.patches, width)
    for index in range(config.depth):
        shapes |= _norm_tensors(config, f"layers.{index}.norm")
        shapes |= {f"layers.{index}.mixer.{name}": shape for name, shape in _mixer_tensors(config).items()}
    shapes |= _norm_tensors(config, "norm_f")
    shapes |= {"head.weight": (config.classes, width), "head.bias": (config.classes,)}
    return shapes


def _norm_tensors(config: VimConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias") if config.norm == "layer" else ("weight",)
    return {f"{prefix}.{name}": (config.d_model,) for name in names}


def _mixer_tensors(config: VimConfig) -> dict[str, tuple[int, ...]]:
    width, inner, states = config.d_model, config.d_inner, config.d_state
    shapes: dict[str, tuple[int, ...]] = {"in_proj.weight": (2 * inner, width)}
    shapes |= _direction_tensors(config, suffix="", decay="A_log")
    if config.mixer == "v2":
        shapes |= _direction_tensors(config, suffix="_b", decay="A_b_log")
    elif config.mixer == "v1":
        shapes["A_b_log"] = (inner, states)
    shapes["out_proj.weight"] = (width, inner)
    if config.layer_scale:
        shapes["gamma"] = (width,)
    return shapes


def _direction_tensors(config: VimConfig, suffix: str, decay: str) -> dict[str, tuple[int, ...]]:
    inner, states, rank = config.d_inner, config.d_state, config.dt_rank
    return {
        f"conv1d{suffix}.weight": (inner, 1, config.d_conv),
        f"conv1d{suffix}.bias": (inner,),
        f"x_proj{suffix}.weight": (rank + 2 * states, inner),
        f"dt_proj{suffix}.weight": (inner, rank),
        f"dt_proj{suffix}.bias": (inner,),
        decay: (inner, states),
        f"D{suffix}": (inner,),
    }


VIM_TINY = VimConfig.of_width(192)
VIM_SMALL = VimConfig.of_width(384)
VIM_BASE = VimConfig.of_width(768)

# Fine-tuned on long sequences: the same patches at half the distance.
VIM_TINY_STRIDE8 = dataclasses.replace(VIM_TINY, stride=8, grid=(27, 27))
VIM_SMALL_STRIDE8 = dataclasses.replace(VIM_SMALL, stride=8, grid=(27, 27))
VIM_BASE_STRIDE8 = dataclasses.replace(VIM_BASE, stride=8, grid=(27, 27))

PRESETS: dict[str, VimConfig] = {
    "vim-ti": VIM_TINY,
    "vim-s": VIM_SMALL,
    "vim-b": VIM_BASE,
    "vim-ti-stride8": VIM_TINY_STRIDE8,
    "vim-s-stride8": VIM_SMALL_STRIDE8,
    "vim-b-stride8": VIM_BASE_STRIDE8,
}

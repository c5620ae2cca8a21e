"""Vision Mamba (Vim, arXiv 2401.09417) in plain PyTorch: the definition that the runtime is held to.

Every operation is written as its formula, in whatever floating type the model has; the residual stream, the
time step and the scan never run below fp32. Parameters carry the names of published checkpoints, so
their state dicts load as they are. Symbols: B batch, M patches, T tokens, D model width, E inner width, N state
size, R rank of the time step, W convolution width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VimConfig, expected_tensors

ROPE_BASE_GRID = 14
ROPE_BASE = 10000.0

# Elements of exp(delta A), and of each other term of the scan, that are made at once: few enough to stay in cache.
SCAN_TERMS = 1 << 17


ScanInputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


class Scan(Protocol):
    """Anything that computes what `selective_scan` does."""

    def __call__(self, c: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor: ...


def _at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def selective_scan(c: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan of Mamba (arXiv 2312.00752, section 3.2), step by step in time.

        h_t = exp(delta_t A) h_{t-1} + (delta_t c_t) B_t,  h before the first token = 0
        y_t = C_t . h_t + D c_t

    Args:
        c: input (batch, T, E).
        delta: time step (batch, T, E), above zero.
        A: decay rates (E, N), below zero.
        B, C: input and output maps of each token (batch, T, N).
        D: skip weights (E).

    Returns:
        y (batch, T, E), in fp32 or wider.
    """
    c, delta, A, B, C, D = (_at_least_fp32(values) for values in (c, delta, A, B, C, D))
    A = A.t().contiguous()  # terms are (batch, T, N, E): the longest axis last, where operations run fastest
    state = c.new_zeros(c.shape[0], *A.shape)
    chunk = max(1, SCAN_TERMS // state.numel())
    in_place = not torch.is_grad_enabled()  # training needs every term; without it each state takes its drive's place
    outputs = []
    chunks = (torch.split(values, chunk, dim=1) for values in (c, delta, B, C))
    for c_k, delta_k, B_k, C_k in zip(*chunks, strict=True):
        decay = torch.exp_(delta_k.unsqueeze(2) * A)
        drive = (delta_k * c_k).unsqueeze(2) * B_k.unsqueeze(3)
        states = []
        for decay_t, drive_t in zip(decay.unbind(1), drive.unbind(1), strict=True):
            state = torch.addcmul(drive_t, decay_t, state, out=drive_t if in_place else None)
            states.append(state)
        h = drive if in_place else torch.stack(states, dim=1)
        outputs.append(torch.matmul(C_k.unsqueeze(2), h).squeeze(2))
    return torch.cat(outputs, dim=1) + D * c


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution of x (batch, T, E) with weight (E, 1, W); tap W - 1 is on the current token."""
    taps, length = weight.shape[-1], x.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = bias
    for tap, of_channels in enumerate(weight[:, 0].t().contiguous()):
        y = torch.addcmul(y, of_channels, padded[:, tap : tap + length])
    return y


def resample_positions(table: Tensor, config: VimConfig, grid: tuple[int, int]) -> Tensor:
    """The position table (1, T0, D) of `config.grid`, resampled to another grid of patches: (1, T, D).

    Class tokens' entries are taken out, the patches' are resampled bicubically (align_corners false), and the class
    tokens' are put back where class tokens stand in the new sequence; with `config.first_entry` the first entries
    play that part, and stay first.
    """
    if grid == config.grid:
        return table
    count, (rows, columns) = config.class_tokens, config.grid
    old, new = config.class_token_indices(config.patches), config.class_token_indices(grid[0] * grid[1])
    if config.first_entry:
        old = new = tuple(range(count))
    kept = [index for index in range(table.shape[1]) if index not in old]
    image = table[:, kept].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return insert_tokens(image.flatten(2).transpose(1, 2), [table[:, index : index + 1] for index in old], new)


def insert_tokens(patches: Tensor, tokens: Sequence[Tensor], indices: tuple[int, ...]) -> Tensor:
    """Puts tokens (1, 1, D) into patches (batch, M, D) so that they stand at `indices`, ascending, of the result."""
    sequence = patches
    for token, index in zip(tokens, indices, strict=True):
        inserted = token.to(sequence.dtype).expand(sequence.shape[0], 1, -1)
        sequence = torch.cat([sequence[:, :index], inserted, sequence[:, index:]], dim=1)
    return sequence


def rope_tables(grid: tuple[int, int], channels: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows * columns, channels), fp64, that turn each patch by its place in the grid.

    The first half of the channels turns with the row, the second with the column, by the angle
    position * 14 / grid * 10000^(-2k / (channels / 2)) for the k-th pair of the half.
    """
    half = channels // 2
    frequencies = ROPE_BASE ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    axes = []
    for size in grid:
        positions = torch.arange(size, dtype=torch.float64) * (ROPE_BASE_GRID / size)
        axes.append(torch.outer(positions, frequencies).repeat_interleave(2, dim=1))
    rows, columns = grid
    by_row = axes[0].unsqueeze(1).expand(rows, columns, half)
    by_column = axes[1].unsqueeze(0).expand(rows, columns, half)
    angles = torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, channels)
    return angles.cos(), angles.sin()


def rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs (0, 1), (2, 3), ... of tokens (batch, M, D) by the angles of the tables (M, D)."""
    turned = torch.stack([-tokens[..., 1::2], tokens[..., 0::2]], dim=-1).flatten(-2)
    return tokens * cos + turned * sin


class Rope(nn.Module):
    """The rotation by place, with tables as the checkpoint has them for its own grid."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        cos, sin = rope_tables(grid, channels)
        self.register_buffer("freqs_cos", cos.to(torch.get_default_dtype()))
        self.register_buffer("freqs_sin", sin.to(torch.get_default_dtype()))

    def tables(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines (rows * columns, D) for `grid`: the checkpoint's, or computed for another grid."""
        if grid == self.grid:
            return self.freqs_cos, self.freqs_sin
        cos, sin = rope_tables(grid, self.channels)
        return cos.to(self.freqs_cos), sin.to(self.freqs_sin)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def _norm(config: VimConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return RMSNorm(config.d_model, config.norm_eps)


class Mixer(nn.Module):
    """The bidirectional Mamba block of Vim (Algorithm 1), and its two other forms, "v1" and "none".

    Parameters of the backward direction end in _b, as checkpoints name them.
    """

    def __init__(self, config: VimConfig, scan: Scan) -> None:
        super().__init__()
        self.config, self.scan = config, scan
        inner, states = config.d_inner, config.d_state
        self.in_proj = nn.Linear(config.d_model, 2 * inner, bias=False)
        self._add_direction("")
        self.A_log = nn.Parameter(_initial_A_log(inner, states))
        if config.mixer == "v2":
            self._add_direction("_b")
        if config.mixer != "none":
            self.A_b_log = nn.Parameter(_initial_A_log(inner, states))
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)
        if config.layer_scale:
            self.gamma = nn.Parameter(torch.ones(config.d_model))

    def _add_direction(self, suffix: str) -> None:
        config, inner = self.config, self.config.d_inner
        conv = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.add_module(f"conv1d{suffix}", conv)
        self.add_module(f"x_proj{suffix}", nn.Linear(inner, config.dt_rank + 2 * config.d_state, bias=False))
        dt_proj = nn.Linear(config.dt_rank, inner)
        dt_proj.bias.data.copy_(_delta_bias(inner, None))
        self.add_module(f"dt_proj{suffix}", dt_proj)
        self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))

    def _scan_inputs(self, x: Tensor, suffix: str) -> ScanInputs:
        """c, delta (batch, T, E) and B, C (batch, T, N) of one direction, in the order of x (batch, T, E)."""
        conv = cast(nn.Conv1d, self.get_submodule(f"conv1d{suffix}"))
        x_proj = self.get_submodule(f"x_proj{suffix}")
        dt_proj = cast(nn.Linear, self.get_submodule(f"dt_proj{suffix}"))
        assert conv.bias is not None
        c = F.silu(causal_conv1d(x, conv.weight, conv.bias))
        rank, states = self.config.dt_rank, self.config.d_state
        low_rank, B, C = x_proj(c).split([rank, states, states], dim=-1)
        delta = F.softplus(_at_least_fp32(F.linear(low_rank, dt_proj.weight)) + dt_proj.bias)
        return c, delta, B, C

    def _scan(self, inputs: ScanInputs, A_log: Tensor, skip: str) -> Tensor:
        c, delta, B, C = inputs
        return self.scan(c, delta, -torch.exp(A_log), B, C, self.get_parameter(skip))

    def _directions(self, x: Tensor) -> list[Tensor]:
        """y (batch, T, E) of each direction, all in the order of x."""
        inputs = self._scan_inputs(x, "")
        forward = self._scan(inputs, self.A_log, "D")
        if self.config.mixer == "none":
            return [forward]
        if self.config.mixer == "v2":
            backward = self._scan(self._scan_inputs(x.flip(1), "_b"), self.A_b_log, "D_b")
        else:
            c, delta, B, C = inputs
            backward = self._scan((c.flip(1), delta.flip(1), B.flip(1), C.flip(1)), self.A_b_log, "D")
        return [forward, backward.flip(1)]

    def forward(self, u: Tensor) -> Tensor:
        """The block's output (batch, T, D) for normed tokens u (batch, T, D)."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        directions = self._directions(x)
        y = sum(directions[1:], start=directions[0])
        if len(directions) == 2 and self.config.merge == "mean":
            y = y / 2
        out: Tensor = self.out_proj(y.to(z.dtype) * F.silu(z))
        return out * self.gamma if self.config.layer_scale else out


def _initial_A_log(inner: int, states: int) -> Tensor:
    return torch.log(torch.arange(1, states + 1, dtype=torch.get_default_dtype())).expand(inner, states).clone()


def _delta_bias(inner: int, generator: torch.Generator | None) -> Tensor:
    """The bias (E) whose softplus is log-uniform in [1e-3, 1e-1], the time steps that Mamba starts from."""
    uniform = torch.rand(inner, generator=generator, dtype=torch.float64)
    delta = torch.exp(uniform * (math.log(1e-1) - math.log(1e-3)) + math.log(1e-3))
    return torch.log(torch.expm1(delta))


class Block(nn.Module):
    """One add-norm-mix step. `layers.i` of a checkpoint."""

    def __init__(self, config: VimConfig, scan: Scan) -> None:
        super().__init__()
        self.norm = _norm(config)
        self.mixer = Mixer(config, scan)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next hidden (batch, T, D) and the residual stream (batch, T, D) that this block read."""
        residual = _at_least_fp32(hidden) if residual is None else residual + hidden
        return self.mixer(self.norm(residual)), residual


class PatchEmbed(nn.Module):
    """Patches as a strided convolution. `patch_embed` of a checkpoint."""

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.d_model, config.patch_size, stride=config.stride)

    def forward(self, images: Tensor) -> Tensor:
        """Patches (batch, M, D), row by row, of images (batch, channels, height, width)."""
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class VisionMamba(nn.Module):
    """A Vim classifier whose parameters have the names and shapes of `expected_tensors(config)`.

    Takes images of any size of at least one patch: positions are resampled, and rope tables recomputed, where the
    grid of patches differs from `config.grid`.

    Args:
        config: the model's shapes and variant.
        scan: what computes the selective scan; the sequential `selective_scan` unless another is given.
    """

    def __init__(self, config: VimConfig, scan: Scan = selective_scan) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        for name in _class_token_names(config):
            self.register_parameter(name, nn.Parameter(0.02 * torch.randn(1, 1, config.d_model)))
        if config.position_embedding:
            self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.tokens, config.d_model))
        if config.rope:
            self.rope = Rope(config.grid, config.d_model)
        self.layers = nn.ModuleList(Block(config, scan) for _ in range(config.depth))
        self.norm_f = _norm(config)
        self.head = nn.Linear(config.d_model, config.classes)

    @classmethod
    def from_state_dict(
        cls, config: VimConfig, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> VisionMamba:
        """The model with these weights, in evaluation mode and without gradients.

        Args:
            config: the model's shapes and variant.
            state: a tensor for each name of `expected_tensors(config)`, in any floating type.
            dtype: what the model computes in, torch.float32 or torch.float64.

        Raises:
            RuntimeError: a tensor is missing, unexpected or misshapen.
        """
        model = cls(config).to(dtype)
        model.load_state_dict(dict(state))
        return model.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of normalised images (batch, channels, height, width)."""
        return self._classify(self._encode(images, None), None)

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """Every named value on the way from normalised images (batch, channels, height, width) to logits.

        Returns, in the order they are computed:
            patches (batch, M, D); tokens_in (batch, T, D), class tokens and positions included;
            layers.i.residual (batch, T, D), the residual stream after the add at the start of block i;
            layers.i.hidden (batch, T, D), block i's output; tokens (batch, T, D), after the last norm;
            features (batch, D), what the head sees (absent with pool "max", whose head sees every token);
            logits (batch, classes).
        """
        values: dict[str, Tensor] = {}
        self._classify(self._encode(images, values), values)
        return values

    def _encode(self, images: Tensor, values: dict[str, Tensor] | None) -> Tensor:
        grid = self.config.grid_of(images.shape[2], images.shape[3])
        patches = self.patch_embed(images)
        hidden = self._with_positions(self._with_class_tokens(patches), grid)
        _keep(values, {"patches": patches, "tokens_in": hidden})
        tables = self.rope.tables(grid) if self.config.rope else None
        residual: Tensor | None = None
        for index, block in enumerate(self.layers):
            if tables is not None:
                hidden = rotate(hidden, *tables)
                residual = None if residual is None else rotate(residual, *tables)
            hidden, residual = block(hidden, residual)
            _keep(values, {f"layers.{index}.residual": residual, f"layers.{index}.hidden": hidden})
        assert residual is not None
        tokens: Tensor = self.norm_f(residual + hidden)
        _keep(values, {"tokens": tokens})
        return tokens

    def _with_class_tokens(self, patches: Tensor) -> Tensor:
        tokens = [self.get_parameter(name) for name in _class_token_names(self.config)]
        return insert_tokens(patches, tokens, self.config.class_token_indices(patches.shape[1]))

    def _with_positions(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        if not self.config.position_embedding:
            return tokens
        return tokens + resample_positions(self.pos_embed, self.config, grid)

    def _classify(self, tokens: Tensor, values: dict[str, Tensor] | None) -> Tensor:
        if self.config.pool == "max":
            logits: Tensor = self.head(tokens).amax(dim=1)
        else:
            features = self._features(tokens)
            _keep(values, {"features": features})
            logits = self.head(features)
        _keep(values, {"logits": logits})
        return logits

    def _features(self, tokens: Tensor) -> Tensor:
        if self.config.pool == "mean":
            return tokens.mean(dim=1)
        if self.config.pool == "last":
            return tokens[:, -1]
        patches = tokens.shape[1] - self.config.class_tokens
        # Slices, not an index tensor: those can be recorded in a CUDA graph.
        chosen = [tokens[:, index] for index in self.config.class_token_indices(patches)]
        return torch.stack(chosen).mean(dim=0)


def _keep(values: dict[str, Tensor] | None, named: dict[str, Tensor]) -> None:
    if values is not None:
        values.update(named)


def _class_token_names(config: VimConfig) -> tuple[str, ...]:
    if config.class_token == "ends":
        return ("cls_token_head", "cls_token_tail")
    return () if config.class_token == "none" else ("cls_token",)


def random_state_dict(config: VimConfig, seed: int) -> dict[str, Tensor]:
    """Weights (fp32) of a trained model's scale, for tests: at initialisation logits are near zero and tell little.

    The same configuration and seed always give the same weights; logits of `random_images` then have a
    standard deviation near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = rope_tables(config.grid, config.d_model) if config.rope else None
    state: dict[str, Tensor] = {}
    for name, shape in expected_tensors(config).items():
        if tables is not None and name.startswith("rope."):
            tensor = tables[0] if name == "rope.freqs_cos" else tables[1]
        else:
            tensor = _random_tensor(name, shape, generator)
        state[name] = tensor.float()
    return state


def _random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    module, _, leaf = name.rpartition(".")
    owner = module.rpartition(".")[2]
    if owner in ("dt_proj", "dt_proj_b") and leaf == "bias":
        return _delta_bias(shape[0], generator)
    if owner in ("conv1d", "conv1d_b") and leaf == "weight":
        return torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if leaf in ("A_log", "A_b_log"):
        return torch.log(torch.arange(1, shape[1] + 1, dtype=torch.float64)) + 0.15 * normal
    if leaf in ("D", "D_b", "gamma") or (owner in ("norm", "norm_f") and leaf == "weight"):
        return 1 + 0.2 * normal
    if leaf == "pos_embed" or leaf.startswith("cls_token"):
        return 0.3 * normal
    if leaf == "bias":
        return 0.1 * normal
    return normal / math.sqrt(math.prod(shape[1:]))


def random_images(batch: int, height: int, width: int, seed: int, channels: int = 3) -> Tensor:
    """Normalised images (batch, channels, height, width), fp32, for tests: smooth waves plus noise 0.5 n.

    Each channel of each image is a plane wave of one to four periods in each direction, with its own phase.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(height, dtype=torch.float64).view(-1, 1) / height
    columns = torch.arange(width, dtype=torch.float64) / width
    periods = 1 + 3 * torch.rand(2, batch, channels, 1, 1, generator=generator, dtype=torch.float64)
    phase = torch.rand(batch, channels, 1, 1, generator=generator, dtype=torch.float64)
    waves = torch.sin(2 * math.pi * (periods[0] * rows + periods[1] * columns + phase))
    noise = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    return (waves + 0.5 * noise).float()

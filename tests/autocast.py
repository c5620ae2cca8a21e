"""What the authors' half-precision evaluation computes: the reference with every matrix product and activation rounded
as PyTorch's autocast rounds them in the authors' code, and the scan, softplus and residual in fp32.

The error of a random checkpoint's logits depends on the draw, by a third and more, so that a bound measured on one draw
says little of another: the runtime's error is compared with this one's on the same weights and images.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimrt.export.reference import Mixer, VisionMamba, causal_conv1d


class Autocast:
    """A reference evaluated as under autocast.

    Args:
        model: of mixers without layer scale, its features those of the class token.
        dtype: torch.float16 or torch.bfloat16.
    """

    def __init__(self, model: VisionMamba, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (batch, classes) of normalised images (batch, channels, height, width)."""
        model = self.model
        grid = model.config.grid_of(images.shape[2], images.shape[3])
        embed = model.patch_embed.proj
        patches = F.conv2d(self._round(images), self._round(embed.weight), embed.bias, stride=model.config.stride)
        tokens = self._round(patches).flatten(2).transpose(1, 2)
        hidden = model._with_positions(model._with_class_tokens(tokens), grid)
        residual = torch.zeros_like(hidden)
        for block in model.layers:
            residual = residual + hidden
            hidden = self._mix(cast(Mixer, block.mixer), block.norm(residual))
        features = model._features(model.norm_f(residual + hidden))
        return self._linear(features, model.head.weight) + model.head.bias

    def _round(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).float()

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._round(F.linear(self._round(x), self._round(weight)))

    def _mix(self, mixer: Mixer, u: Tensor) -> Tensor:
        x, z = self._linear(u, mixer.in_proj.weight).chunk(2, dim=-1)
        gate = F.silu(z)
        inputs = self._scan_inputs(mixer, x, "")
        y = mixer._scan(inputs, mixer.A_log, "D")
        if mixer.config.mixer == "v1":
            reversed_inputs = tuple(values.flip(1) for values in inputs)
            backward = mixer._scan(cast("tuple[Tensor, Tensor, Tensor, Tensor]", reversed_inputs), mixer.A_b_log, "D")
            y = self._round(y) + self._round(backward.flip(1))
        y = self._round(y * gate)
        if mixer.config.mixer == "v2":
            backward = mixer._scan(self._scan_inputs(mixer, x.flip(1), "_b"), mixer.A_b_log, "D_b").flip(1)
            y = self._round(y + self._round(backward * gate))
            if mixer.config.merge == "mean":
                y = self._round(y / 2)
        return self._linear(y, mixer.out_proj.weight)

    def _scan_inputs(self, mixer: Mixer, x: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        conv = cast(nn.Conv1d, mixer.get_submodule(f"conv1d{suffix}"))
        x_proj = cast(nn.Linear, mixer.get_submodule(f"x_proj{suffix}"))
        dt_proj = cast(nn.Linear, mixer.get_submodule(f"dt_proj{suffix}"))
        assert conv.bias is not None
        c = self._round(F.silu(causal_conv1d(x, conv.weight, conv.bias)))
        rank, states = mixer.config.dt_rank, mixer.config.d_state
        low_rank, B, C = self._linear(c, x_proj.weight).split([rank, states, states], dim=-1)
        return c, F.softplus(self._linear(low_rank, dt_proj.weight) + dt_proj.bias), B, C

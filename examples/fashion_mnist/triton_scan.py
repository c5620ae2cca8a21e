"""The selective scan with its gradient as two Triton kernels, to train on a CUDA GPU at a useful speed.

`vimrt.export.reference.selective_scan` launches a kernel for each token, and its gradient several; here one launch
walks all tokens. A program owns one image and BLOCK channels: the (BLOCK, N) states stay in registers while it
steps through time. The forward pass writes each state out, the backward pass reads them in reverse order.
Sums over channels (the gradients of B and C) are left as one partial sum for each block and added by torch, so
results do not depend on the order in which programs run.

Symbols as in vimrt.export.reference: T tokens, E channels, N states.
"""

# Triton is installed with torch only where it has CUDA, and its kernels' arguments have no Python types.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-any-return"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
WARPS = 1


@triton.jit
def _forward_kernel(c, delta, A, B, C, y, states, T, E, N: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    inside = e < E
    a = tl.load(A + e[:, None] * N + n, mask=inside[:, None], other=0.0)
    h = tl.zeros((BLOCK, N), tl.float32)
    for t in range(T):
        token = image.to(tl.int64) * T + t
        x = tl.load(c + token * E + e, mask=inside, other=0.0).to(tl.float32)
        step = tl.load(delta + token * E + e, mask=inside, other=0.0)
        b = tl.load(B + token * N + n).to(tl.float32)
        out = tl.load(C + token * N + n).to(tl.float32)
        h = tl.exp(step[:, None] * a) * h + (step * x)[:, None] * b[None, :]
        tl.store(y + token * E + e, tl.sum(h * out[None, :], axis=1), mask=inside)
        tl.store(states + (token * E + e)[:, None] * N + n, h.to(states.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _backward_kernel(
    c, delta, A, B, C, states, dy, dc, ddelta, dA, dB, dC, images, T, E, N: tl.constexpr, BLOCK: tl.constexpr
):
    image = tl.program_id(0)
    block = tl.program_id(1)
    e = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    inside = e < E
    a = tl.load(A + e[:, None] * N + n, mask=inside[:, None], other=0.0)
    da = tl.zeros((BLOCK, N), tl.float32)
    dh = tl.zeros((BLOCK, N), tl.float32)
    last = image.to(tl.int64) * T + T - 1
    h = tl.load(states + (last * E + e)[:, None] * N + n, mask=inside[:, None], other=0.0).to(tl.float32)
    for i in range(T):
        token = last - i
        x = tl.load(c + token * E + e, mask=inside, other=0.0).to(tl.float32)
        step = tl.load(delta + token * E + e, mask=inside, other=0.0)
        b = tl.load(B + token * N + n).to(tl.float32)
        out = tl.load(C + token * N + n).to(tl.float32)
        grad = tl.load(dy + token * E + e, mask=inside, other=0.0)
        has_previous = inside[:, None] & (i < T - 1)
        previous = tl.load(states + ((token - 1) * E + e)[:, None] * N + n, mask=has_previous, other=0.0)
        previous = previous.to(tl.float32)
        decay = tl.exp(step[:, None] * a)
        dh += grad[:, None] * out[None, :]
        dexponent = dh * previous * decay
        da += dexponent * step[:, None]
        ddrive = tl.sum(dh * b[None, :], axis=1)
        tl.store(ddelta + token * E + e, tl.sum(dexponent * a, axis=1) + ddrive * x, mask=inside)
        tl.store(dc + token * E + e, ddrive * step, mask=inside)
        partial = (block.to(tl.int64) * images * T + token) * N + n
        tl.store(dB + partial, tl.sum(dh * (step * x)[:, None], axis=0))
        tl.store(dC + partial, tl.sum(h * grad[:, None], axis=0))
        dh = dh * decay
        h = previous
    tl.store(dA + (image.to(tl.int64) * E + e)[:, None] * N + n, da, mask=inside[:, None])


@torch.library.custom_op("vimrt_examples::scan", mutates_args=())
def _scan(c: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """y (batch, T, E) without the skip D c, fp32, and the states (batch, T, E, N)."""
    c, delta, A, B, C = (values.contiguous() for values in (c, delta, A, B, C))
    y, states = _scan_outputs(c, delta, A, B, C, state_dtype)
    images, tokens, channels = c.shape
    grid = (images, triton.cdiv(channels, BLOCK))
    _forward_kernel[grid](c, delta, A, B, C, y, states, tokens, channels, A.shape[1], BLOCK, num_warps=WARPS)
    return y, states


@_scan.register_fake
def _scan_outputs(
    c: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return c.new_empty(c.shape, dtype=torch.float32), c.new_empty((*c.shape, A.shape[1]), dtype=state_dtype)


@torch.library.custom_op("vimrt_examples::scan_backward", mutates_args=())
def _scan_backward(
    c: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients, fp32, of c and delta (batch, T, E), A (E, N), B and C (batch, T, N)."""
    c, delta, A, B, C, dy = (values.contiguous() for values in (c, delta, A, B, C, dy))
    images, tokens, channels = c.shape
    blocks, N = triton.cdiv(channels, BLOCK), A.shape[1]
    dc, ddelta = torch.empty_like(delta), torch.empty_like(delta)
    dA = delta.new_empty(images, channels, N)
    dB, dC = delta.new_empty(blocks, images, tokens, N), delta.new_empty(blocks, images, tokens, N)
    _backward_kernel[images, blocks](
        c, delta, A, B, C, states, dy, dc, ddelta, dA, dB, dC, images, tokens, channels, N, BLOCK, num_warps=WARPS
    )
    return dc, ddelta, dA.sum(0), dB.sum(0), dC.sum(0)


@_scan_backward.register_fake
def _(
    c: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = (delta.shape, delta.shape, A.shape, B.shape, C.shape)
    dc, ddelta, dA, dB, dC = (delta.new_empty(shape) for shape in shapes)
    return dc, ddelta, dA, dB, dC


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    c, delta, A, B, C, _ = inputs
    ctx.save_for_backward(c, delta, A, B, C, output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    c, delta, A, B, C, states = ctx.saved_tensors
    dc, ddelta, dA, dB, dC = _scan_backward(c, delta, A, B, C, states, dy.float())
    return dc.to(c.dtype), ddelta, dA, dB.to(B.dtype), dC.to(C.dtype), None


_scan.register_autograd(_gradients, setup_context=_save_inputs)


def triton_scan(
    c: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The scan of `vimrt.export.reference.selective_scan`, differentiable, on a CUDA GPU.

    Args:
        c: input (batch, T, E), in any floating type of at most 32 bits.
        delta: time step (batch, T, E), fp32.
        A: decay rates (E, N), fp32; N a power of two.
        B, C: input and output maps of each token (batch, T, N), in any floating type of at most 32 bits.
        D: skip weights (E).
        state_dtype: how states are kept for the gradient; the recurrence itself is in fp32. bf16 halves the
            memory traffic and leaves gradients right to about three digits.

    Returns:
        y (batch, T, E), fp32.

    Raises:
        ValueError: N is not a power of two, or delta or A is not fp32.
    """
    states = A.shape[1]
    if states & (states - 1):
        raise ValueError(f"the Triton scan needs a state size that is a power of two, not {states}; use selective_scan")
    if delta.dtype != torch.float32 or A.dtype != torch.float32:
        raise ValueError(f"the Triton scan needs delta and A in float32, not {delta.dtype} and {A.dtype}")
    y, _ = _scan(c, delta, A, B, C, state_dtype)
    return y + D * c

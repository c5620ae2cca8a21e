"""The work that no implementation of a Vim graph can avoid, and the time it takes at a processor's own rates.

Counted are the exponentials of the selective scan, one for each state update (batch, token, channel E, state N,
direction), and the multiplications and additions of all matrix products. Everything else, the norms, the convolution,
SiLU, softplus, the state updates' multiply-adds, is left out: the floor is a lower bound, not an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

# Operators without matrix products or state updates, whose first output has as many rows as their first input.
_ROWWISE = frozenset(("add_norm", "add_position", "gated_merge", "rope", "scale", "split"))


@dataclass(frozen=True)
class Work:
    """What one run computes: exponentials of the scan, and floating-point operations of matrix products."""

    exponentials: int = 0
    matrix_flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.exponentials + other.exponentials, self.matrix_flops + other.matrix_flops)

    def floor_seconds(self, exp_per_second: float, fma_flops_per_second: float) -> float:
        """The least time of a processor with these rates that does one after the other."""
        return self.exponentials / exp_per_second + self.matrix_flops / fma_flops_per_second


def work_of(info: Mapping[str, Any], batch: int, image_size: tuple[int, int]) -> Work:
    """The work of running a model, as `Engine.info` describes it, on `batch` images of rows and columns `image_size`.

    Raises:
        ValueError: the graph has an operator whose work is not known here.
    """
    graph = json.loads(info["metadata"]["graph"])
    shapes = {weight["name"]: tuple(weight["shape"]) for weight in info["weights"]}
    rows: dict[str, int] = {}  # by value: batch times tokens
    total = Work()
    for node in graph["nodes"]:
        weights = {role: shapes[name] for role, name in node.get("weights", {}).items()}
        attributes = node.get("attributes", {})
        work, count = _node(node["op"], rows.get(node["inputs"][0], 0), weights, attributes, batch, image_size)
        rows |= dict.fromkeys(node["outputs"], count)
        total += work
    return total


def _node(
    op: str,
    rows: int,
    weights: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, Any],
    batch: int,
    image_size: tuple[int, int],
) -> tuple[Work, int]:
    """The node's work, and the rows of its outputs, from the `rows` of its first input."""
    if op == "patch_embed":
        return _patch_embed(weights["weight"], attributes["stride"], batch, image_size)
    if op == "insert_tokens":
        return Work(), rows + batch * (2 if attributes["position"] == "ends" else 1)
    if op == "linear":
        return Work(matrix_flops=2 * rows * prod(weights["weight"])), rows
    if op == "bidirectional_scan":
        return _scan(weights, rows), rows
    if op in ("select_tokens", "pool"):
        return Work(), batch
    if op in _ROWWISE:
        return Work(), rows
    raise ValueError(f"the work of the operator {op} is not known")


def _patch_embed(weight: tuple[int, ...], stride: int, batch: int, image_size: tuple[int, int]) -> tuple[Work, int]:
    patches = batch * prod((side - patch) // stride + 1 for side, patch in zip(image_size, weight[2:], strict=True))
    return Work(matrix_flops=2 * patches * prod(weight)), patches


def _scan(weights: Mapping[str, tuple[int, ...]], rows: int) -> Work:
    """Each direction has its own decay; with backward "shared" both read the same projections."""
    exponentials = sum(rows * prod(weights[role]) for role in ("A_log", "A_b_log") if role in weights)
    projections = ("x_proj.weight", "dt_proj.weight", "x_proj_b.weight", "dt_proj_b.weight")
    flops = sum(2 * rows * prod(weights[role]) for role in projections if role in weights)
    return Work(exponentials, flops)

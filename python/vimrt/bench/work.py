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

    def floor_seconds(self, exp_per_second: float, matrix_flops_per_second: float) -> float:
        """The least time of a processor with these rates that does one after the other, as each block of Vim must:
        its scan needs its projections, and the next projection needs the scan."""
        return self.exponentials / exp_per_second + self.matrix_flops / matrix_flops_per_second


@dataclass(frozen=True)
class Part:
    """One part of a node that a step of its own may compute: "linear", "scan", "x_proj", "dt_proj", "patch_embed".

    `weights` counts the elements of its matrices, each of which is read at least once.
    """

    node: str
    name: str
    work: Work
    weights: int


def work_of(info: Mapping[str, Any], batch: int, image_size: tuple[int, int]) -> Work:
    """The work of running a model, as `Engine.info` describes it, on `batch` images of rows and columns `image_size`.

    Raises:
        ValueError: the graph has an operator whose work is not known here.
    """
    return sum((part.work for part in parts_of(info, batch, image_size)), Work())


def parts_of(info: Mapping[str, Any], batch: int, image_size: tuple[int, int]) -> list[Part]:
    """The same in parts, in the graph's order. Raises as work_of() does."""
    graph = json.loads(info["metadata"]["graph"])
    shapes = {weight["name"]: tuple(weight["shape"]) for weight in info["weights"]}
    rows: dict[str, int] = {}  # by value: batch times tokens
    parts: list[Part] = []
    for node in graph["nodes"]:
        weights = {role: shapes[name] for role, name in node.get("weights", {}).items()}
        attributes = node.get("attributes", {})
        works, count = _node(node["op"], rows.get(node["inputs"][0], 0), weights, attributes, batch, image_size)
        rows |= dict.fromkeys(node["outputs"], count)
        for name, (work, elements) in works.items():
            parts.append(Part(node["name"], name, work, elements))
    return parts


def _node(
    op: str,
    rows: int,
    weights: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, Any],
    batch: int,
    image_size: tuple[int, int],
) -> tuple[dict[str, tuple[Work, int]], int]:
    """The node's parts, each with its work and elements of weights, and the rows of its outputs, from the `rows` of its
    first input."""
    if op == "patch_embed":
        patches = _patches(weights["weight"], attributes["stride"], batch, image_size)
        return {"patch_embed": _product(patches, weights["weight"])}, patches
    if op == "insert_tokens":
        return {}, rows + batch * (2 if attributes["position"] == "ends" else 1)
    if op == "linear":
        return {"linear": _product(rows, weights["weight"])}, rows
    if op == "bidirectional_scan":
        return _scan(weights, rows), rows
    if op in ("select_tokens", "pool"):
        return {}, batch
    if op in _ROWWISE:
        return {}, rows
    raise ValueError(f"the work of the operator {op} is not known")


def _product(rows: int, *weights: tuple[int, ...]) -> tuple[Work, int]:
    elements = sum(prod(weight) for weight in weights)
    return Work(matrix_flops=2 * rows * elements), elements


def _patches(weight: tuple[int, ...], stride: int, batch: int, image_size: tuple[int, int]) -> int:
    return batch * prod((side - patch) // stride + 1 for side, patch in zip(image_size, weight[2:], strict=True))


def _scan(weights: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, tuple[Work, int]]:
    """Each direction has its own decay; with backward "shared" both read the same projections."""
    decays = [weights[role] for role in ("A_log", "A_b_log") if role in weights]
    parts = {"scan": (Work(exponentials=sum(rows * prod(decay) for decay in decays)), sum(map(prod, decays)))}
    for name in ("x_proj", "dt_proj"):
        roles = (f"{name}.weight", f"{name}_b.weight")
        parts[name] = _product(rows, *(weights[role] for role in roles if role in weights))
    return parts

"""The work that no implementation of a Vim graph can avoid, and the time it takes at a processor's own rates.

Counted are the exponentials of the selective scan, one for each state update (batch, token, channel E, state N,
direction), and the multiplications and additions of all matrix products. Everything else, the norms, the convolution,
SiLU, softplus, the state updates' multiply-adds, is left out: the floor is a lower bound, not an estimate. Of a block
whose result is read of one token alone, as the last one's is where the head reads the class token, the scan counts as
far as that token, and out_proj for that token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

# Operators without matrix products or state updates, whose first output has as many rows as their first input.
_ROWWISE = frozenset(("add_norm", "add_position", "gated_merge", "rope", "scale", "split"))
# Those whose outputs' tokens are computed of the same tokens of their inputs.
_BY_TOKEN = _ROWWISE | {"linear"}


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
    whole = _values_read_whole(graph)
    rows: dict[str, int] = {}  # by value: batch times tokens
    parts: list[Part] = []
    for node in graph["nodes"]:
        weights = {role: shapes[name] for role, name in node.get("weights", {}).items()}
        attributes = node.get("attributes", {})
        before = rows.get(node["inputs"][0], 0)
        token = None if whole & set(node["outputs"]) else _selected_token(graph, before // batch)
        works, count = _node(node["op"], before, weights, attributes, batch, image_size, token)
        rows |= dict.fromkeys(node["outputs"], count)
        for name, (work, elements) in works.items():
            parts.append(Part(node["name"], name, work, elements))
    return parts


def _values_read_whole(graph: Mapping[str, Any]) -> set[str]:
    """The values of which other tokens are needed than one that is selected, for the graph's first output."""
    whole = {next(iter(graph["outputs"].values()))}
    for node in reversed(graph["nodes"]):
        selects = node["op"] == "select_tokens" and node["attributes"]["position"] != "ends"
        if not selects and (node["op"] not in _BY_TOKEN or whole & set(node["outputs"])):
            whole |= set(node["inputs"])
    return whole


def _selected_token(graph: Mapping[str, Any], tokens: int) -> int | None:
    positions = [node["attributes"]["position"] for node in graph["nodes"] if node["op"] == "select_tokens"]
    return {"head": 0, "middle": (tokens - 1) // 2, "last": tokens - 1}.get(positions[0]) if positions else None


def _node(
    op: str,
    rows: int,
    weights: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, Any],
    batch: int,
    image_size: tuple[int, int],
    token: int | None,
) -> tuple[dict[str, tuple[Work, int]], int]:
    """The node's parts, each with its work and elements of weights, and the rows of its outputs, from the `rows` of its
    first input. `token` is the only one of each image whose result is needed; None: all are."""
    if op == "patch_embed":
        patches = _patches(weights["weight"], attributes["stride"], batch, image_size)
        return {"patch_embed": _product(patches, weights["weight"])}, patches
    if op == "insert_tokens":
        return {}, rows + batch * (2 if attributes["position"] == "ends" else 1)
    if op == "linear":
        return {"linear": _product(rows if token is None else batch, weights["weight"])}, rows
    if op == "bidirectional_scan":
        walked = (rows, rows) if token is None else (batch * (token + 1), rows - batch * token)
        return _scan(weights, rows, walked), rows
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


def _scan(weights: Mapping[str, tuple[int, ...]], rows: int, walked: tuple[int, int]) -> dict[str, tuple[Work, int]]:
    """Of so many rows, of which the forward and the backward direction walk as many as `walked`. Each direction has its
    own decay; with backward "shared" both read the same projections."""
    decays = [weights[role] for role in ("A_log", "A_b_log") if role in weights]
    exponentials = sum(count * prod(decay) for count, decay in zip(walked, decays, strict=False))
    parts = {"scan": (Work(exponentials=exponentials), sum(map(prod, decays)))}
    for name in ("x_proj", "dt_proj"):
        projections = [weights[role] for role in (f"{name}.weight", f"{name}_b.weight") if role in weights]
        shared = len(projections) < len(decays)
        products = [_product(rows if shared else count, own) for count, own in zip(walked, projections, strict=False)]
        parts[name] = sum((work for work, _ in products), Work()), sum(elements for _, elements in products)
    return parts

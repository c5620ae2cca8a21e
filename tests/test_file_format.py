"""Exported files against docs/file-format.md: the safetensors package reads them, and the graph is whole.

The operator table is written out here a second time, from the document, so that exporter and document are compared.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from vimrt.export import VimConfig, export_checkpoint

torch = pytest.importorskip("torch")

from vimrt.export.reference import random_state_dict  # noqa: E402

TINY = VimConfig.of_width(32, depth=3, classes=10)
FORWARD_ONLY = replace(TINY, mixer="none", merge="sum")
NO_CLASS_TOKEN = replace(TINY, class_token="none", pool="last")

# Every variant of the model, with the options that say what no tensor tells.
VARIANTS: dict[str, tuple[VimConfig, dict[str, Any]]] = {
    "middle": (TINY, {}),
    "head": (replace(TINY, class_token="head"), {"class_token": "head"}),
    "tail": (replace(TINY, class_token="tail"), {"class_token": "tail"}),
    "ends": (replace(TINY, class_token="ends"), {}),
    "stride 8": (replace(TINY, stride=8, grid=(27, 27)), {}),
    "512 pixels": (replace(TINY, grid=(32, 32)), {}),
    "1248 pixels": (replace(TINY, grid=(78, 78)), {}),
    "pool mean": (replace(NO_CLASS_TOKEN, pool="mean"), {"pool": "mean"}),
    "pool max": (replace(NO_CLASS_TOKEN, pool="max"), {"pool": "max"}),
    "pool last": (NO_CLASS_TOKEN, {}),
    "mean over class token": (replace(TINY, pool="mean"), {"pool": "mean"}),
    "sum": (replace(TINY, merge="sum"), {"merge": "sum"}),
    "rope": (replace(NO_CLASS_TOKEN, rope=True, pool="mean"), {"pool": "mean"}),
    "rope alone": (replace(NO_CLASS_TOKEN, rope=True, position_embedding=False), {}),
    "mixer v1": (replace(TINY, mixer="v1", merge="sum"), {}),
    "forward only": (FORWARD_ONLY, {}),
    "layer norm": (replace(TINY, norm="layer"), {}),
    "layer scale": (replace(TINY, layer_scale=True), {}),
    "first entry": (replace(TINY, first_entry=True), {"first_entry": True}),
    "other sizes": (
        VimConfig(
            d_model=24,
            depth=2,
            d_inner=72,
            d_state=5,
            dt_rank=7,
            d_conv=3,
            patch_size=(4, 4),
            stride=2,
            classes=3,
            grid=(13, 13),
        ),
        {"stride": 2},
    ),
}

SCAN = ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D")
SCAN_OWN = (
    "conv1d_b.weight",
    "conv1d_b.bias",
    "x_proj_b.weight",
    "dt_proj_b.weight",
    "dt_proj_b.bias",
    "A_b_log",
    "D_b",
)
# Operator: required weights, optional weights, required attributes, optional attributes.
OPERATORS: dict[str, tuple[set[str], set[str], set[str], set[str]]] = {
    "patch_embed": ({"weight"}, {"bias"}, {"stride"}, set()),
    "insert_tokens": (set(), {"token", "head", "tail"}, {"position"}, set()),
    "add_position": ({"position"}, set(), {"grid", "class_token"}, {"first_entry"}),
    "rope": ({"cos", "sin"}, set(), {"grid"}, {"base_grid"}),
    "add_norm": ({"weight"}, {"bias"}, {"norm", "eps"}, set()),
    "linear": ({"weight"}, {"bias"}, set(), set()),
    "split": (set(), set(), {"sizes"}, set()),
    "bidirectional_scan": (set(SCAN), set(SCAN_OWN), {"backward"}, set()),
    "gated_merge": (set(), set(), {"merge"}, set()),
    "scale": ({"gamma"}, set(), set(), set()),
    "select_tokens": (set(), set(), {"position"}, set()),
    "pool": (set(), set(), {"mode"}, set()),
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ExportedFile:
    """A file read with the safetensors package alone."""

    config: VimConfig
    metadata: dict[str, str]
    shapes: dict[str, Shape]
    data: dict[str, np.ndarray[Any, Any]]

    @property
    def graph(self) -> dict[str, Any]:
        graph: dict[str, Any] = json.loads(self.metadata["graph"])
        return graph


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportedFile:
    config, options = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("exported")
    torch.save({"model": random_state_dict(config, seed=1)}, folder / "vim.pth")
    export_checkpoint(folder / "vim.pth", folder / "vim.vimrt", **options)
    return open_file(folder / "vim.vimrt", config)


def open_file(path: Path, config: VimConfig) -> ExportedFile:
    with safe_open(path, framework="numpy") as file:
        data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: array.shape for name, array in data.items()}
        return ExportedFile(config, file.metadata(), shapes, data)


def test_the_safetensors_package_finds_every_weight_of_the_checkpoint(exported: ExportedFile) -> None:
    state = random_state_dict(exported.config, seed=1)
    assert exported.data.keys() == state.keys()
    for name, values in state.items():
        np.testing.assert_array_equal(exported.data[name], values.numpy(), err_msg=name)


def test_the_model_is_recognised_as_the_one_that_was_saved(exported: ExportedFile) -> None:
    assert VimConfig.from_json(json.dumps(json.loads(exported.metadata["model"])["config"])) == exported.config


def test_metadata_name_the_format(exported: ExportedFile) -> None:
    assert exported.metadata["format"] == "vimrt"
    assert exported.metadata["format_version"] == "1"
    assert json.loads(exported.metadata["preprocessing"])["image_size"] == list(exported.config.image_size)


def test_every_node_has_the_weights_and_attributes_of_its_operator(exported: ExportedFile) -> None:
    for node in exported.graph["nodes"]:
        required, optional, attributes, optional_attributes = OPERATORS[node["op"]]
        weights, given = set(node.get("weights", {})), set(node.get("attributes", {}))
        assert required <= weights <= required | optional, node
        assert attributes <= given <= attributes | optional_attributes, node


def test_every_weight_is_used_and_every_weight_used_exists(exported: ExportedFile) -> None:
    used = [tensor for node in exported.graph["nodes"] for tensor in node.get("weights", {}).values()]
    assert set(used) == exported.shapes.keys()
    if not exported.config.rope:  # whose tables serve every block
        assert len(used) == len(set(used))


def test_nodes_and_values_are_named_once_and_read_only_what_stands_before(exported: ExportedFile) -> None:
    graph = exported.graph
    names = [node["name"] for node in graph["nodes"]]
    assert len(names) == len(set(names))
    known = {source["name"] for source in graph["inputs"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, node
        assert not set(node["outputs"]) & known, node
        known |= set(node["outputs"])
    assert set(graph["outputs"].values()) <= known


def test_outputs_are_those_the_variant_has(exported: ExportedFile) -> None:
    expected = {"logits", "tokens"} if exported.config.pool == "max" else {"logits", "features", "tokens"}
    assert exported.graph["outputs"].keys() == expected


@pytest.mark.parametrize("scale", [1, 2])
def test_shapes_follow_from_node_to_node(exported: ExportedFile, scale: int) -> None:
    config, batch = exported.config, 2
    height, width = config.image_size[0] * scale, config.image_size[1]
    rows, columns = config.grid_of(height, width)
    tokens = rows * columns + config.class_tokens
    shapes = infer_shapes(exported, (batch, 3, height, width))
    assert shapes["patches"] == (batch, rows * columns, config.d_model)
    assert shapes["tokens"] == (batch, tokens, config.d_model)
    assert shapes["logits"] == (batch, config.classes)
    for i in range(config.depth):
        assert shapes[f"layers.{i}.residual"] == shapes[f"layers.{i}.hidden"] == (batch, tokens, config.d_model)
        assert shapes[f"layers.{i}.y"] == (batch, tokens, config.d_inner)


def infer_shapes(file: ExportedFile, pixels: Shape) -> dict[str, Shape]:
    """Shapes of all values by the document's table; asserts those of the weights on the way."""
    shapes: dict[str, Shape] = {"pixels": pixels}
    for node in file.graph["nodes"]:
        inputs = [shapes[name] for name in node["inputs"]]
        weights = {role: file.shapes[name] for role, name in node.get("weights", {}).items()}
        outputs = infer_node(node["op"], inputs, weights, node.get("attributes", {}))
        outputs = outputs * len(node["outputs"]) if len(outputs) == 1 else outputs
        assert len(outputs) == len(node["outputs"]), node
        shapes |= dict(zip(node["outputs"], outputs, strict=True))
    return shapes


def infer_node(op: str, inputs: list[Shape], weights: dict[str, Shape], attributes: dict[str, Any]) -> list[Shape]:
    first = inputs[0]
    if op == "patch_embed":
        width, channels, *patch = weights["weight"]
        assert channels == first[1]
        assert weights["bias"] == (width,)
        grid = [(size - side) // attributes["stride"] + 1 for size, side in zip(first[2:], patch, strict=True)]
        return [(first[0], math.prod(grid), width)]
    if op == "insert_tokens":
        roles = {"head", "tail"} if attributes["position"] == "ends" else {"token"}
        assert weights == dict.fromkeys(roles, (1, 1, first[2]))
        return [(first[0], first[1] + len(roles), first[2])]
    if op == "add_position":
        extra = {"none": 0, "ends": 2}.get(attributes["class_token"], 1)
        assert weights["position"] == (1, math.prod(attributes["grid"]) + extra, first[2])
    elif op == "rope":
        assert set(weights.values()) == {(math.prod(attributes["grid"]), first[2])}
    elif op == "add_norm":
        assert set(inputs) == {first}
        assert weights == dict.fromkeys(["weight", "bias"] if attributes["norm"] == "layer" else ["weight"], first[-1:])
    elif op == "linear":
        features, inner = weights["weight"]
        assert inner == first[-1]
        assert weights.get("bias", (features,)) == (features,)
        return [(*first[:-1], features)]
    elif op == "split":
        assert sum(attributes["sizes"]) == first[-1]
        return [(*first[:-1], size) for size in attributes["sizes"]]
    elif op == "bidirectional_scan":
        return infer_scan(first, weights, attributes["backward"])
    elif op == "gated_merge":
        assert set(inputs) == {first}
    elif op == "scale":
        assert weights["gamma"] == first[-1:]
    else:
        return [(first[0], first[2])]
    return [first]


def infer_scan(x: Shape, weights: dict[str, Shape], backward: str) -> list[Shape]:
    inner, states, rank = x[2], weights["A_log"][1], weights["dt_proj.weight"][1]
    expected = {
        "conv1d.weight": (inner, 1, weights["conv1d.weight"][2]),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * states, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "A_log": (inner, states),
        "D": (inner,),
    }
    if backward == "own":
        own = zip(SCAN_OWN, SCAN, strict=True)
        expected |= {role: expected[forward] for role, forward in own}
    elif backward == "shared":
        expected["A_b_log"] = expected["A_log"]
    assert weights == expected
    return [x] if backward == "none" else [x, x]


def test_the_class_token_is_selected_where_it_was_inserted(exported: ExportedFile) -> None:
    attributes = {node["op"]: node.get("attributes", {}) for node in exported.graph["nodes"]}
    config = exported.config
    if config.class_token == "none":
        assert "insert_tokens" not in attributes
    else:
        assert attributes["insert_tokens"]["position"] == config.class_token
    if config.pool == "token":
        selected = {"middle": "middle", "head": "head", "tail": "last", "ends": "ends"}
        assert attributes["select_tokens"]["position"] == selected[config.class_token]


def test_only_two_directions_are_averaged(exported: ExportedFile) -> None:
    merges = {node["attributes"]["merge"] for node in exported.graph["nodes"] if node["op"] == "gated_merge"}
    assert merges == {"mean" if exported.config.mixer == "v2" and exported.config.merge == "mean" else "sum"}


def test_rope_rotates_hidden_and_residual_before_each_block_but_not_after_the_last(exported: ExportedFile) -> None:
    rotated = [node["inputs"][0] for node in exported.graph["nodes"] if node["op"] == "rope"]
    if not exported.config.rope:
        assert rotated == []
        return
    tokens = "tokens_in" if exported.config.position_embedding else "patches"
    expected = [tokens]
    for i in range(1, exported.config.depth):
        expected += [f"layers.{i - 1}.hidden", f"layers.{i - 1}.residual"]
    assert rotated == expected


def test_data_begin_at_a_cache_line_and_large_tensors_stay_aligned(tmp_path: Path) -> None:
    torch.save(random_state_dict(TINY, seed=2), tmp_path / "vim.pth")
    export_checkpoint(tmp_path / "vim.pth", tmp_path / "vim.vimrt", dtype="fp16")
    content = (tmp_path / "vim.vimrt").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert content[8:9] == b"{"
    assert (8 + length) % 64 == 0
    end = 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] == end, "tensors are dense and listed in the order of their data"
        end = entry["data_offsets"][1]
        size = end - entry["data_offsets"][0]
        assert entry["data_offsets"][0] % math.gcd(size, 64) == 0, name
    assert len(content) == 8 + length + end

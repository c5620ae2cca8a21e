"""The exported graph computes the model: interpreted by docs/file-format.md, it gives the reference's values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from vimrt.export import VimConfig, export_checkpoint

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from vimrt.export.reference import VisionMamba, random_images, random_state_dict, selective_scan  # noqa: E402

Tensors = dict[str, Any]

TINY = VimConfig.of_width(16, depth=3, classes=5, grid=(3, 3))
PATCHES_ONLY = replace(TINY, class_token="none", pool="last")
VARIANTS: dict[str, tuple[VimConfig, dict[str, Any]]] = {
    "middle": (TINY, {}),
    "head": (replace(TINY, class_token="head"), {"class_token": "head"}),
    "tail": (replace(TINY, class_token="tail"), {"class_token": "tail"}),
    "ends": (replace(TINY, class_token="ends"), {}),
    "pool mean": (replace(PATCHES_ONLY, pool="mean"), {"pool": "mean"}),
    "pool max": (replace(PATCHES_ONLY, pool="max"), {"pool": "max"}),
    "pool last": (PATCHES_ONLY, {}),
    "sum": (replace(TINY, merge="sum"), {"merge": "sum"}),
    "rope": (replace(PATCHES_ONLY, rope=True), {}),
    "mixer v1": (replace(TINY, mixer="v1", merge="sum"), {}),
    "forward only": (replace(TINY, mixer="none", merge="sum"), {}),
    "layer norm and layer scale": (replace(TINY, norm="layer", layer_scale=True), {}),
    "overlapping patches": (replace(TINY, stride=8), {"stride": 8}),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small PyTorch's threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_graph_gives_the_references_values(name: str, tmp_path: Path) -> None:
    config, options = VARIANTS[name]
    state = random_state_dict(config, seed=3)
    torch.save(state, tmp_path / "vim.pth")
    export_checkpoint(tmp_path / "vim.pth", tmp_path / "vim.vimrt", **options)
    images = random_images(2, *config.image_size, seed=4).double()
    found = interpret(tmp_path / "vim.vimrt", images)
    with torch.inference_mode():
        expected = VisionMamba.from_state_dict(config, state, torch.float64).intermediates(images)
    assert len(expected) >= 2 * config.depth + 4
    for value, reference in expected.items():
        torch.testing.assert_close(
            found[value], reference, rtol=1e-9, atol=1e-9, msg=lambda text, v=value: f"{v}: {text}"
        )


def interpret(path: Path, images: Any) -> Tensors:
    """Every value of the graph in fp64, node by node."""
    with safe_open(path, framework="pt") as file:
        graph = json.loads(file.metadata()["graph"])
        tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
    values: Tensors = {"pixels": images}
    for node in graph["nodes"]:
        weights = {role: tensors[name] for role, name in node.get("weights", {}).items()}
        inputs = [values[name] for name in node["inputs"]]
        outputs = OPERATORS[node["op"]](inputs, weights, node.get("attributes", {}))
        values |= dict(zip(node["outputs"], outputs, strict=False))
    return values | {name: values[value] for name, value in graph["outputs"].items()}


def patch_embed(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    patches = F.conv2d(inputs[0], weights["weight"], weights["bias"], stride=attributes["stride"])
    return [patches.flatten(2).transpose(1, 2)]


def insert_tokens(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    patches = list(inputs[0].unbind(1))
    count = len(patches)
    places = {"middle": [count // 2], "head": [0], "tail": [count], "ends": [0, count + 1]}[attributes["position"]]
    tokens = [weights["token"]] if "token" in weights else [weights["head"], weights["tail"]]
    for place, token in zip(places, tokens, strict=True):
        patches.insert(place, token[0, 0].expand_as(patches[0]))
    return [torch.stack(patches, dim=1)]


def rope(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    even, odd = inputs[0][..., 0::2], inputs[0][..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return [inputs[0] * weights["cos"] + turned * weights["sin"]]


def add_norm(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    residual, eps = sum(inputs), attributes["eps"]
    if attributes["norm"] == "layer":
        return [F.layer_norm(residual, residual.shape[-1:], weights["weight"], weights["bias"], eps), residual]
    return [residual / (residual.square().mean(-1, keepdim=True) + eps).sqrt() * weights["weight"], residual]


def scan_inputs(x: Any, weights: Tensors, suffix: str, a_log: str) -> tuple[Any, Any, Any, Any, Any]:
    """c, delta, A, B, C of one direction."""
    kernel = weights[f"conv1d{suffix}.weight"]
    padded = F.pad(x.transpose(1, 2), (kernel.shape[2] - 1, 0))
    c = F.silu(F.conv1d(padded, kernel, weights[f"conv1d{suffix}.bias"], groups=x.shape[2])).transpose(1, 2)
    rank, states = weights[f"dt_proj{suffix}.weight"].shape[1], weights[a_log].shape[1]
    low_rank, B, C = (c @ weights[f"x_proj{suffix}.weight"].T).split([rank, states, states], dim=-1)
    delta = F.softplus(low_rank @ weights[f"dt_proj{suffix}.weight"].T + weights[f"dt_proj{suffix}.bias"])
    return c, delta, -weights[a_log].exp(), B, C


def bidirectional_scan(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    x = inputs[0]
    c, delta, A, B, C = scan_inputs(x, weights, "", "A_log")
    outputs = [selective_scan(c, delta, A, B, C, weights["D"])]
    if attributes["backward"] == "own":
        outputs.append(selective_scan(*scan_inputs(x.flip(1), weights, "_b", "A_b_log"), weights["D_b"]).flip(1))
    elif attributes["backward"] == "shared":
        c, delta, B, C = (value.flip(1) for value in (c, delta, B, C))
        outputs.append(selective_scan(c, delta, -weights["A_b_log"].exp(), B, C, weights["D"]).flip(1))
    return outputs


def gated_merge(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    *directions, z = inputs
    return [sum(directions) / (2 if attributes["merge"] == "mean" else 1) * F.silu(z)]


def select_tokens(inputs: list[Any], weights: Tensors, attributes: dict[str, Any]) -> list[Any]:
    last = inputs[0].shape[1] - 1
    places = {"middle": [last // 2], "head": [0], "last": [last], "ends": [0, last]}[attributes["position"]]
    return [inputs[0][:, places].mean(1)]


OPERATORS: dict[str, Any] = {
    "patch_embed": patch_embed,
    "insert_tokens": insert_tokens,
    "add_position": lambda inputs, weights, _: [inputs[0] + weights["position"]],
    "rope": rope,
    "add_norm": add_norm,
    "linear": lambda inputs, weights, _: [F.linear(inputs[0], weights["weight"], weights.get("bias"))],
    "split": lambda inputs, _, attributes: inputs[0].split(attributes["sizes"], dim=-1),
    "bidirectional_scan": bidirectional_scan,
    "gated_merge": gated_merge,
    "scale": lambda inputs, weights, _: [inputs[0] * weights["gamma"]],
    "select_tokens": select_tokens,
    "pool": lambda inputs, _, attributes: [inputs[0].amax(1) if attributes["mode"] == "max" else inputs[0].mean(1)],
}

"""Each remaining operator by itself, against its definition in float64, at odd sizes and thread counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import Array, node, relative_error, run_tokens, tokens_engine, write_graph

import vimrt

TOLERANCE = 1e-6
SHAPES = [(1, 1, 1), (1, 1, 8), (2, 3, 16), (3, 7, 17), (1, 197, 192), (2, 31, 50), (5, 13, 129)]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def tokens(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def norm(x: Array, kind: str, eps: float, weight: Array, bias: Array | None) -> Array:
    x = x.astype(np.float64)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return scaled if bias is None else scaled + bias


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_add_norm(shape: tuple[int, ...], kind: str, with_bias: bool, threads: int, tmp_path: Path) -> None:
    width = shape[-1]
    weights = {"w": tokens((width,), 1), "b": tokens((width,), 2), "m": tokens((width, width), 3)}
    roles = {"weight": "w"} | ({"bias": "b"} if with_bias else {})
    nodes = [
        node("linear", ["x"], ["hidden"], {"weight": "m"}),
        node("add_norm", ["hidden", "x"], ["normed", "residual"], roles, norm=kind, eps=1e-3),
    ]
    names = ["hidden", "normed", "residual"]
    kept = {name: weights[name] for name in ["m", *roles.values()]}
    engine = tokens_engine(tmp_path / "g.vimrt", width, nodes, kept, names, threads)
    x = tokens(shape)
    residual = x.astype(np.float64) @ weights["m"].T.astype(np.float64) + x
    expected = norm(residual, kind, 1e-3, weights["w"], weights["b"] if with_bias else None)
    together = run_tokens(engine, x, names)
    alone = {name: run_tokens(engine, x, [name])[name] for name in names}
    for found in (together, alone):
        assert relative_error(found["residual"], residual) <= TOLERANCE
        if width > 1 or kind == "rms":  # one channel less its mean is zero, whose error has no scale
            assert relative_error(found["normed"], expected) <= 2e-5 if width < 4 else 2 * TOLERANCE


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("features", [1, 5, 16, 44, 100])
def test_linear(shape: tuple[int, ...], features: int, threads: int, tmp_path: Path) -> None:
    weights = {"w": tokens((features, shape[-1]), 1), "b": tokens((features,), 2)}
    nodes = [node("linear", ["x"], ["y"], {"weight": "w", "bias": "b"})]
    engine = tokens_engine(tmp_path / "g.vimrt", shape[-1], nodes, weights, ["y"], threads)
    x = tokens(shape)
    expected = x.astype(np.float64) @ weights["w"].T.astype(np.float64) + weights["b"]
    assert relative_error(run_tokens(engine, x, ["y"])["y"], expected) <= TOLERANCE


def selected(x: Array, position: str) -> Array:
    rows = {"middle": x[:, (x.shape[1] - 1) // 2], "head": x[:, 0], "last": x[:, -1]}
    return (x[:, 0] + x[:, -1]) / 2 if position == "ends" else rows[position]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("position", ["middle", "head", "last", "ends"])
def test_select_tokens(shape: tuple[int, ...], position: str, threads: int, tmp_path: Path) -> None:
    nodes = [node("select_tokens", ["x"], ["y"], position=position)]
    engine = tokens_engine(tmp_path / "g.vimrt", shape[-1], nodes, {}, ["y"], threads)
    x = tokens(shape)
    np.testing.assert_allclose(run_tokens(engine, x, ["y"])["y"], selected(x, position), rtol=1e-6)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-1] > 1], ids=str)
@pytest.mark.parametrize("position", ["middle", "head", "last", "ends"])
def test_selected_tokens_are_computed_alone(
    shape: tuple[int, ...], position: str, threads: int, tmp_path: Path
) -> None:
    """A selection behind what takes each token by itself gives the same whatever else is asked for, and before or after
    others read the same values."""
    width = shape[-1]
    weights = {"m": tokens((width, width), 1), "g": tokens((width,), 2), "w": tokens((width,), 3)}
    nodes = [
        node("scale", ["x"], ["stream"], {"gamma": "g"}),
        node("linear", ["stream"], ["product"], {"weight": "m"}),
        node("scale", ["product"], ["hidden"], {"gamma": "g"}),
        node("add_norm", ["hidden", "stream"], ["normed"], {"weight": "w"}, norm="rms", eps=1e-3),
        node("select_tokens", ["normed"], ["selected"], position=position),
        node("linear", ["selected"], ["out"], {"weight": "m"}),
        node("pool", ["stream"], ["pooled"], mode="max"),
    ]
    names = ["out", "pooled", "stream", "product", "hidden", "normed", "selected"]
    engine = tokens_engine(tmp_path / "g.vimrt", width, nodes, weights, names, threads)
    x = tokens(shape)
    stream = x.astype(np.float64) * weights["g"]
    hidden = stream @ weights["m"].T.astype(np.float64) * weights["g"]
    normed = norm(hidden + stream, "rms", 1e-3, weights["w"], None)
    expected = selected(normed, position) @ weights["m"].T.astype(np.float64)
    for asked in (names, ["out"], ["out", "pooled"], ["pooled", "out"], ["out", "hidden"], ["out", "stream"]):
        found = run_tokens(engine, x, asked)
        assert relative_error(found["out"], expected) <= 1e-5, asked
        if "pooled" in found:
            np.testing.assert_allclose(found["pooled"], stream.max(1), rtol=1e-5, atol=1e-6)
        if "stream" in found:
            np.testing.assert_allclose(found["stream"], stream, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_pool(shape: tuple[int, ...], mode: str, threads: int, tmp_path: Path) -> None:
    engine = tokens_engine(tmp_path / "g.vimrt", shape[-1], [node("pool", ["x"], ["y"], mode=mode)], {}, ["y"], threads)
    x = tokens(shape)
    expected = x.astype(np.float64).mean(1) if mode == "mean" else x.max(1)
    assert relative_error(run_tokens(engine, x, ["y"])["y"], expected) <= TOLERANCE


def test_pool_max_keeps_nan(tmp_path: Path) -> None:
    engine = tokens_engine(tmp_path / "g.vimrt", 5, [node("pool", ["x"], ["y"], mode="max")], {}, ["y"])
    for place in (0, 3, 6):
        x = tokens((1, 7, 5))
        x[0, place] = np.nan
        assert np.isnan(run_tokens(engine, x, ["y"])["y"]).all(), place


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scale(shape: tuple[int, ...], threads: int, tmp_path: Path) -> None:
    gamma = tokens((shape[-1],), 1)
    nodes = [node("scale", ["x"], ["y"], {"gamma": "g"})]
    engine = tokens_engine(tmp_path / "g.vimrt", shape[-1], nodes, {"g": gamma}, ["y", "x"], threads)
    x = tokens(shape)
    found = run_tokens(engine, x, ["y", "x"])
    np.testing.assert_array_equal(found["y"], x * gamma)
    np.testing.assert_array_equal(found["x"], x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_gated_merge(shape: tuple[int, ...], directions: int, merge: str, threads: int, tmp_path: Path) -> None:
    width = shape[-1]
    names = ["a", "b", "z"] if directions == 2 else ["a", "z"]
    nodes = [
        node("split", ["x"], names, sizes=[width] * len(names)),
        node("gated_merge", names, ["y"], merge=merge),
    ]
    engine = tokens_engine(tmp_path / "g.vimrt", width * len(names), nodes, {}, ["y"], threads)
    x = tokens((*shape[:2], width * len(names)))
    parts = np.split(x.astype(np.float64), len(names), axis=-1)
    z = parts.pop()
    share = 0.5 if merge == "mean" and directions == 2 else 1.0
    expected = sum(parts) * share * z / (1 + np.exp(-z))
    assert relative_error(run_tokens(engine, x, ["y"])["y"], expected) <= TOLERANCE


@pytest.mark.parametrize(("patch", "stride"), [((4, 4), 4), ((4, 4), 2), ((3, 5), 2), ((16, 16), 8), ((1, 1), 1)])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (40, 21)])
@pytest.mark.parametrize("width", [8, 19])
def test_patch_embed(
    patch: tuple[int, int], stride: int, size: tuple[int, int], width: int, threads: int, tmp_path: Path
) -> None:
    weights = {"w": tokens((width, 3, *patch), 1), "b": tokens((width,), 2)}
    nodes = [node("patch_embed", ["pixels"], ["y"], {"weight": "w", "bias": "b"}, stride=stride)]
    path = write_graph(tmp_path / "g.vimrt", nodes, weights, ["y"])
    engine = vimrt.Engine(path, device="cpu", threads=threads)
    pixels = tokens((2, 3, *size))
    convolved = torch.nn.functional.conv2d(
        torch.from_numpy(pixels).double(),
        torch.from_numpy(weights["w"]).double(),
        torch.from_numpy(weights["b"]).double(),
        stride=stride,
    )
    expected = convolved.flatten(2).transpose(1, 2).numpy()
    assert relative_error(engine.run(pixels), expected) <= TOLERANCE


def test_patch_embed_from_photographs(threads: int, tmp_path: Path) -> None:
    """Bytes normalised inside the embedding give what normalised floats give."""
    weights = {"w": tokens((19, 3, 4, 4), 1), "b": tokens((19,), 2)}
    nodes = [node("patch_embed", ["pixels"], ["y"], {"weight": "w", "bias": "b"}, stride=4)]
    engine = vimrt.Engine(write_graph(tmp_path / "g.vimrt", nodes, weights, ["y"]), device="cpu", threads=threads)
    photographs = np.random.default_rng(0).integers(0, 256, (3, 80, 70, 3), dtype=np.uint8)
    expected = engine.run(engine.preprocess(photographs))
    assert relative_error(engine.run(photographs), expected) <= TOLERANCE


@pytest.mark.parametrize("position", ["middle", "head", "tail", "ends"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_insert_tokens(position: str, shape: tuple[int, ...], threads: int, tmp_path: Path) -> None:
    width = shape[-1]
    weights = {"a": tokens((1, 1, width), 1)} | ({"b": tokens((1, 1, width), 2)} if position == "ends" else {})
    roles = {"head": "a", "tail": "b"} if position == "ends" else {"token": "a"}
    engine = tokens_engine(
        tmp_path / "g.vimrt",
        width,
        [node("insert_tokens", ["x"], ["y"], roles, position=position)],
        weights,
        ["y"],
        threads,
    )
    x = tokens(shape)
    places = {"middle": [shape[1] // 2], "head": [0], "tail": [shape[1]], "ends": [0, shape[1]]}[position]
    expected = np.insert(x, places, [weights[name][0, 0] for name in roles.values()], axis=1)
    np.testing.assert_array_equal(run_tokens(engine, x, ["y"])["y"], expected)

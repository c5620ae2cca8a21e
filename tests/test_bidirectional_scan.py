"""The bidirectional scan against its definition, in float64 and token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import Array, node, relative_error, run_tokens, tokens_engine

TOLERANCE = 2e-6


def softplus(x: Array) -> Array:
    return np.logaddexp(x, 0)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def random_weights(d_inner: int, d_state: int, dt_rank: int, d_conv: int, seed: int) -> dict[str, Array]:
    """Weights of both directions at a trained model's scale."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    for suffix, a_log in (("", "A_log"), ("_b", "A_b_log")):
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), d_inner))
        weights[f"conv1d{suffix}.weight"] = rng.uniform(-0.5, 0.5, (d_inner, 1, d_conv))
        weights[f"conv1d{suffix}.bias"] = 0.1 * rng.normal(size=d_inner)
        weights[f"x_proj{suffix}.weight"] = rng.normal(size=(dt_rank + 2 * d_state, d_inner)) / np.sqrt(d_inner)
        weights[f"dt_proj{suffix}.weight"] = rng.normal(size=(d_inner, dt_rank)) / np.sqrt(dt_rank)
        weights[f"dt_proj{suffix}.bias"] = step + np.log(-np.expm1(-step))
        weights[a_log] = np.log(np.arange(1, d_state + 1)) + 0.15 * rng.normal(size=(d_inner, d_state))
        weights[f"D{suffix}"] = 1 + 0.2 * rng.normal(size=d_inner)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def scan_inputs(x: Array, weights: dict[str, Array], suffix: str) -> tuple[Array, ...]:
    """c, delta, B, C of one image x (T, E)."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    taps = w[f"conv1d{suffix}.weight"][:, 0, :]
    tokens, d_conv = x.shape[0], taps.shape[1]
    history = np.concatenate([np.zeros((d_conv - 1, x.shape[1])), x])
    convolved = sum(history[tap : tap + tokens] * taps[:, tap] for tap in range(d_conv))
    c = silu(convolved + w[f"conv1d{suffix}.bias"])
    d_state = w["A_log"].shape[1]
    projected = c @ w[f"x_proj{suffix}.weight"].T
    rank = projected.shape[1] - 2 * d_state
    delta = softplus(projected[:, :rank] @ w[f"dt_proj{suffix}.weight"].T + w[f"dt_proj{suffix}.bias"])
    return c, delta, projected[:, rank : rank + d_state], projected[:, rank + d_state :]


def scan(inputs: tuple[Array, ...], a_log: Array, skip: Array) -> Array:
    """y (T, E), one token after the other."""
    c, delta, b, c_out = inputs
    a = -np.exp(a_log.astype(np.float64))
    state = np.zeros_like(a)
    y = np.empty_like(c)
    for t in range(c.shape[0]):
        state = np.exp(delta[t, :, None] * a) * state + (delta[t] * c[t])[:, None] * b[t]
        y[t] = state @ c_out[t] + skip * c[t]
    return y


def expected_scan(x: Array, weights: dict[str, Array], backward: str) -> list[Array]:
    """y_forward and y_backward (B, T, E) by the definition."""
    results: list[list[Array]] = [[], []]
    for image in x.astype(np.float64):
        inputs = scan_inputs(image, weights, "")
        results[0].append(scan(inputs, weights["A_log"], weights["D"]))
        if backward == "own":
            reversed_inputs = scan_inputs(image[::-1], weights, "_b")
            results[1].append(scan(reversed_inputs, weights["A_b_log"], weights["D_b"])[::-1])
        elif backward == "shared":
            flipped = tuple(value[::-1] for value in inputs)
            results[1].append(scan(flipped, weights["A_b_log"], weights["D"])[::-1])
    return [np.stack(result) for result in results if result]


def used(weights: dict[str, Array], backward: str) -> dict[str, Array]:
    if backward == "own":
        return weights
    kept = {name: value for name, value in weights.items() if "_b" not in name}
    return kept | ({"A_b_log": weights["A_b_log"]} if backward == "shared" else {})


SIZES = [
    # batch, tokens, E, N, R, W
    (1, 1, 8, 16, 1, 4),
    (1, 2, 48, 16, 3, 4),
    (2, 3, 16, 8, 1, 4),
    (3, 197, 40, 16, 2, 4),
    (1, 31, 100, 16, 7, 4),
    (1, 127, 17, 5, 2, 3),
    (2, 33, 64, 32, 4, 2),
    (1, 65, 24, 64, 2, 1),
    (1, 64, 72, 1, 5, 8),
    (5, 32, 9, 23, 12, 5),
    (1, 509, 33, 16, 2, 4),
]


@pytest.mark.parametrize("backward", ["own", "shared", "none"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_scan_is_its_definition(size: tuple[int, ...], backward: str, tmp_path: Path) -> None:
    batch, tokens, d_inner, d_state, dt_rank, d_conv = size
    weights = used(random_weights(d_inner, d_state, dt_rank, d_conv, seed=sum(size)), backward)
    outputs = ["y_forward", "y_backward"][: 1 if backward == "none" else 2]
    scan_node = node("bidirectional_scan", ["x"], outputs, {name: name for name in weights}, backward=backward)
    engine = tokens_engine(tmp_path / "scan.vimrt", d_inner, [scan_node], weights, outputs)
    x = np.random.default_rng(tokens).normal(size=(batch, tokens, d_inner)).astype(np.float32)
    found = run_tokens(engine, x, outputs)
    for name, expected in zip(outputs, expected_scan(x, weights, backward), strict=True):
        assert relative_error(found[name], expected) <= TOLERANCE, name


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("backward", ["own", "shared", "none"])
@pytest.mark.parametrize("size", [SIZES[3], SIZES[5], SIZES[10], SIZES[0]], ids=lambda size: "x".join(map(str, size)))
def test_scan_fused_with_its_gate(
    size: tuple[int, ...], backward: str, threads: int, merge: str, tmp_path: Path
) -> None:
    """Scan and gated merge in one step, from the two halves of one projection, by any number of threads."""
    batch, tokens, d_inner, d_state, dt_rank, d_conv = size
    weights = used(random_weights(d_inner, d_state, dt_rank, d_conv, seed=threads), backward)
    scanned = ["y_forward", "y_backward"][: 1 if backward == "none" else 2]
    nodes = [
        node("split", ["x"], ["u", "z"], sizes=[d_inner, d_inner]),
        node("bidirectional_scan", ["u"], scanned, {name: name for name in weights}, backward=backward),
        node("gated_merge", [*scanned, "z"], ["y"], merge=merge),
    ]
    engine = tokens_engine(tmp_path / "mixer.vimrt", 2 * d_inner, nodes, weights, ["y"], threads)
    assert engine.threads == threads
    x = np.random.default_rng(tokens).normal(size=(batch, tokens, 2 * d_inner)).astype(np.float32)
    u, z = x[:, :, :d_inner], x[:, :, d_inner:].astype(np.float64)
    share = 0.5 if merge == "mean" and backward != "none" else 1.0
    expected = sum(expected_scan(u, weights, backward)) * share * silu(z)
    assert relative_error(run_tokens(engine, x, ["y"])["y"], expected) <= TOLERANCE


def test_large_and_small_steps(tmp_path: Path) -> None:
    """Decays that underflow to zero, and steps so small that they hardly decay, stay right."""
    d_inner, d_state = 16, 16
    weights = random_weights(d_inner, d_state, 1, 4, seed=1)
    weights["dt_proj.bias"] = np.linspace(-25, 90, d_inner).astype(np.float32)
    weights = used(weights, "none")
    scan_node = node("bidirectional_scan", ["x"], ["y"], {name: name for name in weights}, backward="none")
    engine = tokens_engine(tmp_path / "scan.vimrt", d_inner, [scan_node], weights, ["y"])
    x = np.random.default_rng(0).normal(size=(1, 50, d_inner)).astype(np.float32)
    found = run_tokens(engine, x, ["y"])["y"]
    expected = expected_scan(x, weights, "none")[0]
    for channel in range(d_inner):
        assert relative_error(found[..., channel], expected[..., channel]) <= 1e-5, channel


def test_nan_does_not_reach_earlier_tokens(tmp_path: Path) -> None:
    d_inner, d_state = 8, 16
    weights = used(random_weights(d_inner, d_state, 1, 4, seed=2), "none")
    scan_node = node("bidirectional_scan", ["x"], ["y"], {name: name for name in weights}, backward="none")
    engine = tokens_engine(tmp_path / "scan.vimrt", d_inner, [scan_node], weights, ["y"])
    x = np.random.default_rng(0).normal(size=(1, 40, d_inner)).astype(np.float32)
    clean = run_tokens(engine, x, ["y"])["y"]
    x[0, 20] = np.nan
    found = run_tokens(engine, x, ["y"])["y"]
    assert np.isnan(found[0, 20:]).all()
    np.testing.assert_array_equal(found[0, :20], clean[0, :20])


def test_infinite_time_gives_no_nan(tmp_path: Path) -> None:
    """A step so long that everything is forgotten leaves the newest token alone."""
    d_inner, d_state = 8, 16
    weights = used(random_weights(d_inner, d_state, 1, 4, seed=2), "none")
    weights["dt_proj.bias"] = np.full(d_inner, 3e4, np.float32)
    scan_node = node("bidirectional_scan", ["x"], ["y"], {name: name for name in weights}, backward="none")
    engine = tokens_engine(tmp_path / "scan.vimrt", d_inner, [scan_node], weights, ["y"])
    x = np.random.default_rng(0).normal(size=(1, 40, d_inner)).astype(np.float32)
    found = run_tokens(engine, x, ["y"])["y"]
    assert np.isfinite(found).all()
    assert relative_error(found, expected_scan(x, weights, "none")[0]) <= TOLERANCE

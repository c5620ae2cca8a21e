"""The PyTorch reference model: what it computes, checked against definitions written independently in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vimrt.export.config import PRESETS, VIM_TINY, VIM_TINY_STRIDE8, VimConfig, expected_tensors  # noqa: E402
from vimrt.export.reference import (  # noqa: E402
    VisionMamba,
    causal_conv1d,
    insert_tokens,
    random_images,
    random_state_dict,
    resample_positions,
    rope_tables,
    rotate,
    selective_scan,
)

SMALL = VimConfig.of_width(24, depth=3, d_state=4, patch_size=(4, 4), stride=4, grid=(5, 5), classes=7)

VARIANTS: dict[str, dict[str, Any]] = {
    "middle": {},
    "head": {"class_token": "head"},
    "tail": {"class_token": "tail"},
    "ends": {"class_token": "ends"},
    "pool mean": {"class_token": "none", "pool": "mean"},
    "pool max": {"pool": "max"},
    "pool last": {"class_token": "none", "pool": "last"},
    "sum": {"merge": "sum"},
    "v1": {"mixer": "v1", "merge": "sum"},
    "forward only": {"mixer": "none", "pool": "last"},
    "rope": {"class_token": "none", "pool": "mean", "rope": True},
    "layer norm": {"norm": "layer"},
    "layer scale": {"layer_scale": True},
    "no positions": {"position_embedding": False},
    "overlapping patches": {"stride": 3, "grid": (6, 6)},
    "tall patches": {"patch_size": (6, 3), "grid": (4, 6)},
}


def variant(name: str) -> VimConfig:
    return dataclasses.replace(SMALL, **VARIANTS[name])


def reference(config: VimConfig, seed: int = 0, dtype: Any = torch.float64) -> VisionMamba:
    return VisionMamba.from_state_dict(config, random_state_dict(config, seed), dtype)


def mixer_of(model: VisionMamba, index: int) -> Any:
    return model.get_submodule(f"layers.{index}.mixer")


def relative_error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def scan_by_definition(c: Any, delta: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
    """Algorithm 1's recurrence, one number at a time."""
    y = np.zeros_like(c)
    for b, e in np.ndindex(c.shape[0], c.shape[2]):
        h = np.zeros(A.shape[1])
        for t in range(c.shape[1]):
            for n in range(A.shape[1]):
                h[n] = np.exp(delta[b, t, e] * A[e, n]) * h[n] + delta[b, t, e] * c[b, t, e] * B[b, t, n]
            y[b, t, e] = h @ C[b, t] + D[e] * c[b, t, e]
    return y


def scan_inputs(batch: int, tokens: int, channels: int, states: int, seed: int) -> list[Any]:
    draw = np.random.default_rng(seed).standard_normal
    return [
        draw((batch, tokens, channels)),
        np.log1p(np.exp(draw((batch, tokens, channels)) - 2)),
        -np.exp(draw((channels, states))),
        draw((batch, tokens, states)),
        draw((batch, tokens, states)),
        draw(channels),
    ]


@pytest.mark.parametrize("tokens", [1, 2, 13])
def test_scan_follows_the_recurrence(tokens: int) -> None:
    inputs = scan_inputs(2, tokens, 3, 4, seed=tokens)
    found = selective_scan(*map(torch.from_numpy, inputs))
    assert found.dtype == torch.float64
    assert relative_error(found, scan_by_definition(*inputs)) < 1e-14


def test_scan_in_one_piece_or_many_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [torch.from_numpy(values) for values in scan_inputs(2, 23, 5, 4, seed=0)]
    whole = selective_scan(*inputs)
    monkeypatch.setattr("vimrt.export.reference.SCAN_TERMS", 5 * 2 * 5 * 4)
    assert torch.equal(selective_scan(*inputs), whole)


def test_scan_of_half_precision_inputs_runs_in_fp32() -> None:
    inputs = [torch.from_numpy(values).half() for values in scan_inputs(1, 50, 3, 4, seed=1)]
    found = selective_scan(*inputs)
    assert found.dtype == torch.float32
    assert relative_error(found, scan_by_definition(*(values.double().numpy() for values in inputs))) < 1e-6


def test_scan_has_the_right_gradient() -> None:
    inputs = [torch.from_numpy(values).requires_grad_() for values in scan_inputs(1, 5, 2, 3, seed=2)]
    assert torch.autograd.gradcheck(selective_scan, inputs)


def test_convolution_is_causal_with_its_last_tap_on_the_current_token() -> None:
    draw = np.random.default_rng(0).standard_normal
    x, weight, bias = draw((2, 6, 3)), draw((3, 1, 4)), draw(3)
    expected = np.zeros_like(x)
    for t in range(6):
        for tap in range(4):
            if t - (3 - tap) >= 0:
                expected[:, t] += weight[:, 0, tap] * x[:, t - (3 - tap)]
    found = causal_conv1d(*map(torch.from_numpy, (x, weight, bias)))
    assert relative_error(found, expected + bias) < 1e-14


def mixer_by_definition(weights: dict[str, Any], u: Any, config: VimConfig) -> Any:
    """Algorithm 1 for one image: u (T, D), in NumPy, each direction written out by index."""
    tokens, inner = u.shape[0], config.d_inner
    xz = u @ weights["in_proj.weight"].T
    x, z = xz[:, :inner], xz[:, inner:]
    y = np.zeros_like(x)
    for suffix, decay, order in (("", "A_log", range(tokens)), ("_b", "A_b_log", range(tokens - 1, -1, -1))):
        visited = x[list(order)]
        padded = np.vstack([np.zeros((config.d_conv - 1, inner)), visited])
        taps = weights[f"conv1d{suffix}.weight"][:, 0]
        c = np.stack([(padded[t : t + config.d_conv].T * taps).sum(1) for t in range(tokens)])
        c = c + weights[f"conv1d{suffix}.bias"]
        c = c / (1 + np.exp(-c))
        projected = c @ weights[f"x_proj{suffix}.weight"].T
        low_rank, B, C = np.split(projected, [config.dt_rank, config.dt_rank + config.d_state], axis=1)
        delta = np.log1p(np.exp(low_rank @ weights[f"dt_proj{suffix}.weight"].T + weights[f"dt_proj{suffix}.bias"]))
        A = -np.exp(weights[decay])
        scanned = scan_by_definition(c[None], delta[None], A, B[None], C[None], weights[f"D{suffix}"])[0]
        y[list(order)] += scanned / 2
    return (y * z / (1 + np.exp(-z))) @ weights["out_proj.weight"].T


def test_mixer_runs_both_directions_and_halves_their_sum() -> None:
    mixer = mixer_of(reference(SMALL), 1)
    u = np.random.default_rng(3).standard_normal((9, SMALL.d_model))
    weights = {name: value.numpy() for name, value in mixer.state_dict().items()}
    assert relative_error(mixer(torch.from_numpy(u[None]))[0], mixer_by_definition(weights, u, SMALL)) < 1e-13


def test_exchanging_the_directions_parameters_reverses_the_sequence() -> None:
    state = random_state_dict(SMALL, seed=0)
    exchanged = dict(state)
    for name in state:
        if ".A_log" in name:
            other = name.replace("A_log", "A_b_log")
        elif name.endswith(".D"):
            other = name + "_b"
        elif any(part in name for part in (".conv1d.", ".x_proj.", ".dt_proj.")):
            other = name.replace("conv1d.", "conv1d_b.").replace("_proj.", "_proj_b.")
        else:
            continue
        exchanged[name], exchanged[other] = state[other], state[name]
    u = torch.randn(1, 9, SMALL.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = mixer_of(VisionMamba.from_state_dict(SMALL, state, torch.float64), 0)
    two = mixer_of(VisionMamba.from_state_dict(SMALL, exchanged, torch.float64), 0)
    assert relative_error(two(u.flip(1)).flip(1), one(u)) < 1e-14
    assert relative_error(two(u), one(u)) > 0.1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("middle", [0, 1, 9, 2, 3, 4]), ("head", [9, 0, 1, 2, 3, 4]), ("tail", [0, 1, 2, 3, 4, 9])],
)
def test_one_class_token_stands_where_the_kind_says(kind: Any, expected: list[int]) -> None:
    config = dataclasses.replace(SMALL, class_token=kind)
    patches, token = torch.arange(5.0).view(1, 5, 1), torch.full((1, 1, 1), 9.0)
    found = insert_tokens(patches, [token], config.class_token_indices(5))
    assert found.flatten().tolist() == expected


def test_class_tokens_at_both_ends() -> None:
    config = dataclasses.replace(SMALL, class_token="ends")
    patches, tokens = torch.arange(4.0).view(1, 4, 1), [torch.full((1, 1, 1), value) for value in (8.0, 9.0)]
    assert insert_tokens(patches, tokens, config.class_token_indices(4)).flatten().tolist() == [8, 0, 1, 2, 3, 9]


def test_each_position_is_added_to_its_token_the_class_token_included() -> None:
    state = random_state_dict(SMALL, seed=0)
    values = VisionMamba.from_state_dict(SMALL, state, torch.float64).intermediates(
        random_images(2, 20, 20, 0).double()
    )
    middle = SMALL.patches // 2
    added = values["tokens_in"] - state["pos_embed"].double()
    assert torch.allclose(added[:, middle], state["cls_token"].double()[:, 0].expand(2, -1))
    assert torch.allclose(added[:, [t for t in range(SMALL.tokens) if t != middle]], values["patches"])


@pytest.mark.parametrize("name", ["middle", "head", "tail", "ends", "pool mean"])
def test_resampling_to_the_trained_grid_changes_nothing(name: str) -> None:
    config = variant(name)
    table = torch.randn(1, config.tokens, config.d_model)
    assert torch.equal(resample_positions(table, config, config.grid), table)


def bicubic_matrix(old: int, new: int) -> Any:
    """Weights (new, old) of bicubic interpolation along one axis: Keys' kernel, a = -3/4, borders repeated."""
    weights = np.zeros((new, old))
    for place in range(new):
        source = (place + 0.5) * old / new - 0.5
        for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            x = abs(source - tap)
            weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[place, min(max(tap, 0), old - 1)] += weight
    return weights


@pytest.mark.parametrize("grid", [(10, 15), (3, 5), (7, 4)])
@pytest.mark.parametrize("name", ["middle", "head", "tail", "ends", "pool mean"])
def test_resampling_is_bicubic_over_patches_and_moves_class_entries(name: str, grid: tuple[int, int]) -> None:
    config = variant(name)
    patches = np.random.default_rng(0).standard_normal((5, 5))
    classes = [torch.full((1, 1, 1), 100.0 + index, dtype=torch.float64) for index in range(config.class_tokens)]
    table = insert_tokens(torch.from_numpy(patches).reshape(1, 25, 1), classes, config.class_token_indices(25))
    found = resample_positions(table, config, grid)[0, :, 0]
    places = config.class_token_indices(grid[0] * grid[1])
    assert found[list(places)].tolist() == [100.0 + index for index in range(config.class_tokens)]
    image = found[[token for token in range(len(found)) if token not in places]].reshape(grid)
    expected = bicubic_matrix(5, grid[0]) @ patches @ bicubic_matrix(5, grid[1]).T
    assert relative_error(image, expected) < 1e-6


def test_first_entry_resampling_takes_the_first_entry_for_the_class_token() -> None:
    config = dataclasses.replace(SMALL, first_entry=True)
    table = torch.full((1, 26, 1), 3.0)
    table[0, 0] = 50.0
    found = resample_positions(table, config, (7, 6))[0, :, 0]
    assert found.tolist() == pytest.approx([50.0] + [3.0] * 42)
    ordinary = resample_positions(table, SMALL, (7, 6))[0, :, 0]
    assert ordinary[21] == pytest.approx(3.0) and ordinary[0] > 40


def test_rope_tables_turn_half_the_channels_by_row_and_half_by_column() -> None:
    cos, sin = rope_tables((3, 5), 8)
    for patch in range(15):
        row, column = divmod(patch, 5)
        angles = [
            place * 14 / size * 10000.0 ** (-2 * k / 4) for place, size in ((row, 3), (column, 5)) for k in (0, 1)
        ]
        assert cos[patch].tolist() == pytest.approx(np.repeat(np.cos(angles), 2))
        assert sin[patch].tolist() == pytest.approx(np.repeat(np.sin(angles), 2))


def test_rotation_turns_neighbouring_channels_as_complex_numbers() -> None:
    rng = np.random.default_rng(0)
    tokens, angles = rng.standard_normal((2, 3, 8)), rng.standard_normal((3, 4))
    turned = (tokens[..., 0::2] + 1j * tokens[..., 1::2]) * np.exp(1j * angles)
    cos, sin = (torch.from_numpy(np.repeat(values, 2, axis=1)) for values in (np.cos(angles), np.sin(angles)))
    found = rotate(torch.from_numpy(tokens), cos, sin).numpy()
    assert relative_error(found[..., 0::2], turned.real) < 1e-14
    assert relative_error(found[..., 1::2], turned.imag) < 1e-14


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_a_checkpoint_is_expected_to_have(name: str) -> None:
    config = variant(name)
    state = VisionMamba(config).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == expected_tensors(config)


@pytest.mark.parametrize(("name", "millions"), [("vim-ti", 7), ("vim-s", 26), ("vim-b", 98)])
def test_published_models_have_the_published_number_of_parameters(name: str, millions: int) -> None:
    shapes = expected_tensors(PRESETS[name])
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == pytest.approx(millions * 1e6, rel=0.025)


def test_published_grids() -> None:
    assert (VIM_TINY.image_size, VIM_TINY.tokens) == ((224, 224), 197)
    assert (VIM_TINY_STRIDE8.image_size, VIM_TINY_STRIDE8.tokens) == ((224, 224), 730)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", ["trained", (23, 37), (6, 6)])
def test_every_variant_runs_at_any_size_and_fp32_agrees_with_fp64(name: str, size: Any) -> None:
    config = variant(name)
    height, width = config.image_size if size == "trained" else size
    images = random_images(2, height, width, seed=4)
    values = reference(config).intermediates(images.double())
    rows, columns = config.grid_of(height, width)
    assert values["tokens"].shape == (2, rows * columns + config.class_tokens, config.d_model)
    assert values["logits"].shape == (2, config.classes)
    assert values["logits"].std() > 0.1
    found = reference(config, dtype=torch.float32)(images)
    assert found.dtype == torch.float32
    assert relative_error(found, values["logits"]) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_of_a_checkpoint_matters(name: str) -> None:
    """Tokens and logits together, because the last block's far direction may not reach a token at its start."""
    config = dataclasses.replace(variant(name), depth=2)
    images = random_images(1, *config.image_size, seed=5).double()

    def outputs(state: dict[str, Any]) -> Any:
        values = VisionMamba.from_state_dict(config, state, torch.float64).intermediates(images)
        return torch.cat([values["tokens"].flatten(), values["logits"].flatten()])

    state = random_state_dict(config, seed=1)
    before = outputs(state)
    for key in state:
        assert relative_error(outputs(state | {key: state[key] * 1.5 + 0.1}), before) > 1e-6, key


def test_residual_stream_is_the_sum_of_all_outputs_so_far() -> None:
    values = reference(SMALL).intermediates(random_images(2, 20, 20, 0).double())
    expected = values["tokens_in"]
    for index in range(SMALL.depth):
        assert torch.allclose(values[f"layers.{index}.residual"], expected)
        expected = expected + values[f"layers.{index}.hidden"]
    root = expected.square().mean(-1, keepdim=True).add(1e-5).sqrt()
    weight = random_state_dict(SMALL, seed=0)["norm_f.weight"].double()
    assert torch.allclose(values["tokens"], expected / root * weight)


@pytest.mark.parametrize(
    ("name", "select"),
    [
        ("middle", lambda tokens: tokens[:, 12]),
        ("head", lambda tokens: tokens[:, 0]),
        ("tail", lambda tokens: tokens[:, 25]),
        ("ends", lambda tokens: (tokens[:, 0] + tokens[:, 26]) / 2),
        ("pool mean", lambda tokens: tokens.sum(1) / 25),
        ("pool last", lambda tokens: tokens[:, 24]),
    ],
)
def test_features_are_what_the_pooling_says(name: str, select: Any) -> None:
    values = reference(variant(name)).intermediates(random_images(2, 20, 20, 0).double())
    assert torch.allclose(values["features"], select(values["tokens"]))


def test_max_pooling_takes_each_logits_maximum_over_tokens() -> None:
    model = reference(variant("pool max"))
    values = model.intermediates(random_images(2, 20, 20, 0).double())
    assert "features" not in values
    assert torch.equal(values["logits"], model.head(values["tokens"]).max(dim=1).values)


def test_every_parameter_receives_a_gradient() -> None:
    model = VisionMamba(SMALL)
    model.load_state_dict(random_state_dict(SMALL, seed=0))
    model(random_images(1, 20, 20, 0)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_random_weights_and_images_repeat_with_their_seed() -> None:
    one, same, other = (random_state_dict(SMALL, seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert torch.equal(random_images(1, 9, 8, 3), random_images(1, 9, 8, 3))
    assert not torch.equal(random_images(1, 9, 8, 3), random_images(1, 9, 8, 4))


def test_random_vim_tiny_has_logits_of_standard_deviation_near_one() -> None:
    logits = reference(VIM_TINY, dtype=torch.float32)(random_images(1, 224, 224, 0))
    assert 0.7 < float(logits.std()) < 1.4


@pytest.mark.parametrize("name", VARIANTS)
def test_configuration_survives_json(name: str) -> None:
    assert VimConfig.from_json(variant(name).to_json()) == variant(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"patch_size": (4, -1)}, "patch_size columns is -1"),
        ({"mixer": "v3"}, "mixer is 'v3'; it must be one of v2, v1, none"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"class_token": "none"}, "pool by 'mean', 'max' or 'last'"),
        ({"mixer": "v1"}, "set merge to 'sum'"),
        ({"rope": True}, "class_token is 'middle'"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "JSON object"), ('{"width": 3}', "unknown fields: width; missing fields: d_inner, d_model")],
)
def test_json_that_is_no_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VimConfig.from_json(text)


def test_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3x20 pixels .* less than one patch of 4x4"):
        reference(SMALL)(torch.zeros(1, 3, 3, 20, dtype=torch.float64))

"""vimrt.bench.deit computes DeiT: held to the formulas written out in fp64 with explicit attention matrices."""

from __future__ import annotations

import json

import pytest
import torch

from vimrt.bench import deit


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * weight + bias


def naive_deit(state: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int) -> torch.Tensor:
    """Logits (B, classes) in fp64 from the weights alone, one matrix product at a time."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    pixels = pixels.double()
    batch, _, height, width_px = pixels.shape
    rows, columns = height // 16, width_px // 16
    tiles = pixels[:, :, : rows * 16, : columns * 16].reshape(batch, 3, rows, 16, columns, 16)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, 3 * 256)
    x = tiles @ weights["patch_embed.weight"].flatten(1).T + weights["patch_embed.bias"]
    x = torch.cat([weights["class_token"].repeat(batch, 1, 1), x], dim=1) + weights["positions"]
    head_dim = x.shape[2] // heads
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for i in range(depth):
        own = {name.removeprefix(f"blocks.{i}."): w for name, w in weights.items() if name.startswith(f"blocks.{i}.")}
        u = layer_norm(x, own["norm1.weight"], own["norm1.bias"])
        q, k, v = (u @ own["attention.qkv.weight"].T + own["attention.qkv.bias"]).chunk(3, dim=-1)
        mixed = []
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / head_dim**0.5
            unnormalised = torch.exp(scores - scores.amax(-1, keepdim=True))
            mixed.append(unnormalised / unnormalised.sum(-1, keepdim=True) @ v[..., part])
        x = x + torch.cat(mixed, dim=-1) @ own["attention.proj.weight"].T + own["attention.proj.bias"]
        u = layer_norm(x, own["norm2.weight"], own["norm2.bias"]) @ own["fc1.weight"].T + own["fc1.bias"]
        u = u * 0.5 * (1 + torch.erf(u / 2**0.5))
        x = x + u @ own["fc2.weight"].T + own["fc2.bias"]
    token = layer_norm(x, weights["norm.weight"], weights["norm.bias"])[:, 0]
    return token @ weights["head.weight"].T + weights["head.bias"]


def randomised(heads: int, depth: int, image_size: tuple[int, int]) -> torch.nn.Module:
    """Weights large enough that attention is far from uniform and every bias and norm weight matters."""
    torch.manual_seed(7)
    model: torch.nn.Module = deit.DeiT(deit.Config(heads, depth), image_size).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
        elif parameter.dim() == 1:
            parameter.copy_(0.1 * torch.randn_like(parameter))
        elif name.endswith(("class_token", "positions")):
            parameter.copy_(0.3 * torch.randn_like(parameter))
        else:
            parameter.copy_(1.5 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model


@pytest.mark.parametrize(
    ("heads", "depth", "image_size", "batch"),
    [(3, 12, (64, 112), 2), (3, 2, (224, 224), 1), (6, 2, (96, 96), 3), (12, 2, (64, 64), 1)],
)
def test_deit_equals_naive_attention_in_fp64(heads: int, depth: int, image_size: tuple[int, int], batch: int) -> None:
    model = randomised(heads, depth, image_size)
    pixels = torch.randn(batch, 3, *image_size)
    expected = naive_deit(model.state_dict(), pixels, heads)
    with torch.inference_mode():
        got = model(pixels).double()
    assert expected.std() > 0.1
    assert (got - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.7), ("small", 22.1), ("base", 86.6)])
def test_sizes_have_the_published_parameter_counts(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = deit.DeiT(deit.SIZES[size])
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_every_eager_variant_computes_the_same() -> None:
    model = randomised(3, 2, (64, 64))
    pixels = torch.randn(2, 3, 64, 64)
    expected = naive_deit(model.state_dict(), pixels, 3)
    for variant in deit.VARIANTS:
        if variant.options is None:
            got = deit.prepare(model, pixels, variant)().double()
            assert (got - expected).norm() / expected.norm() < 1e-5, variant.name


def test_best_deit_names_the_fastest_variant() -> None:
    eager = [variant for variant in deit.VARIANTS if variant.options is None]
    best = deit.best_deit("tiny", (32, 48), batch=2, variants=eager, rounds=3)
    assert set(best.all_seconds) == {variant.name for variant in eager}
    assert best.seconds == best.all_seconds[best.variant] == min(best.all_seconds.values()) > 0
    assert best.run().shape == (2, 1000)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"huge.*tiny, small, base"):
        deit.best_deit("huge")


def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert deit.main(["--size", "tiny", "--image-size", "32", "48", "--eager", "--rounds", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["image_size"] == [32, 48] and report["milliseconds"] == min(report["all_milliseconds"].values())

"""The commands `vimrt export` and `vimrt verify`: their options, what they print and their exit codes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from vimrt.export import Comparison, VerifyReport, VimConfig, cli
from vimrt.export.cli import parse_image_size

torch = pytest.importorskip("torch")

from vimrt.export.reference import random_state_dict  # noqa: E402

CONFIG = VimConfig.of_width(32, depth=2, classes=10, grid=(13, 13), patch_size=(4, 4), stride=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"model": random_state_dict(CONFIG, seed=0)}, tmp_path / "vim.pth")
    return tmp_path / "vim.pth"


def parse(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vimrt")
    subparsers = parser.add_subparsers()
    cli.add_export_parser(subparsers)
    cli.add_verify_parser(subparsers)
    return parser.parse_args([str(argument) for argument in arguments])


def run(*arguments: str | Path) -> int:
    args = parse(*arguments)
    code: int = args.func(args)
    return code


def test_export_prints_what_was_recognised(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", checkpoint, "--stride", "2") == 0
    captured = capsys.readouterr()
    for text in ("d_model", "32", "13x13", "cls_token", "--stride", "sha256", "images 28x28", "no labels"):
        assert text in captured.out
    assert captured.err == ""
    assert checkpoint.with_suffix(".vimrt").exists()


def test_export_passes_every_option_on(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, labels = checkpoint.parent / "own.vimrt", checkpoint.parent / "labels.txt"
    labels.write_text("\n".join("abcdefghij"))
    options = "--weights model --dtype bf16 --class-token head --merge sum --stride 2 --first-entry --pool mean --json"
    recipe = "--image-size 28x56 --mean 0.1 0.2 0.3 --std 1 2 3 --crop 1"
    assert run("export", checkpoint, "-o", output, *options.split(), *recipe.split(), "--labels", labels) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "bf16"
    assert report["output"] == str(output)
    expected = {"class_token": "head", "merge": "sum", "stride": 2, "first_entry": True, "pool": "mean"}
    assert {key: report["config"][key] for key in expected} == expected
    with safe_open(output, framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["labels"]) == list("abcdefghij")
    assert json.loads(metadata["preprocessing"]) == {
        "image_size": [28, 56],
        "crop": 1,
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
    }


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("512x768", (512, 768)), ("16X8", (16, 8))])
def test_image_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "224x", "x224", "-1", "224x0", "1x2x3", "big"])
def test_image_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no image size; give pixels such as 224"):
        parse_image_size(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["export", "vim.pth", "--dtype", "fp8"],
        ["export", "vim.pth", "--stride", "0"],
        ["export", "vim.pth", "--image-size", "big"],
        ["verify", "vim.vimrt"],
        ["verify", "vim.vimrt", "vim.pth", "--batch", "-1"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*arguments)
    assert raised.value.code == 2


@pytest.mark.parametrize("command", ["export", "verify"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(command, "--help")
    assert raised.value.code == 0
    assert f"  vimrt {command} vim_s" in capsys.readouterr().out


def report_with(errors: Sequence[float]) -> VerifyReport:
    names = ["tokens_in", "layers.1.residual", "tokens", "logits"]
    comparisons = tuple(Comparison(name, error, error <= 1e-5) for name, error in zip(names, errors, strict=True))
    return VerifyReport(Path("vim.vimrt"), Path("vim.pth"), False, 2, (28, 56), 1e-5, comparisons)


@pytest.mark.parametrize(("errors", "code"), [([1e-7, 1e-6, 1e-6, 1e-6], 0), ([1e-7, 3.21e-4, 1e-3, float("inf")], 1)])
def test_verify_prints_every_error_and_where_a_mismatch_starts(
    errors: list[float], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def fake_verify(*paths: Path, **options: Any) -> VerifyReport:
        given.update(options, paths=paths)
        return report_with(errors)

    monkeypatch.setattr(cli, "verify", fake_verify)
    monkeypatch.setattr("vimrt.Engine", lambda model, device: (model, device))
    assert run("verify", "vim.vimrt", "vim.pth", "--image-size", "28x56", "--batch", "2", "--seed", "7") == code
    assert given["paths"] == (Path("vim.vimrt"), Path("vim.pth"))
    assert (given["image_size"], given["batch"], given["seed"]) == ((28, 56), 2, 7)
    assert given["engine"] == (Path("vim.vimrt"), "auto")
    printed = capsys.readouterr().out
    assert "exported from another file" in printed
    assert ("disagree" in printed) == (code == 1)
    assert printed.count("mismatch starts here") == code
    if code:
        line = next(line for line in printed.splitlines() if "mismatch starts here" in line)
        assert "layers.1.residual" in line
        assert "3.21e-04" in line


def test_verify_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("vimrt.Engine", lambda model, device: None)
    monkeypatch.setattr(cli, "verify", lambda *paths, **options: report_with([0, 0, 1, np.inf]))
    assert run("verify", "vim.vimrt", "vim.pth", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["first_mismatch"] == "tokens"
    assert report["passed"] is False
    assert report["image_size"] == [28, 56]

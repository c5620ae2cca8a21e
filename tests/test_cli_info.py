"""`vimrt info` and `vimrt plan`: what the file holds, which steps run, and where their buffers lie."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import LABELS, Vimrt

import vimrt as package


def test_info_summarises_the_file(vimrt: Vimrt, tiny_model: Path, tiny_checkpoint: Path) -> None:
    process = vimrt("info", tiny_model)
    assert (process.returncode, process.stderr) == (0, "")
    rows = {line[:14].strip(): line[14:].strip() for line in process.stdout.splitlines()}
    digest = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert rows["file"] == str(tiny_model)
    assert "D 32, E 64, N 16, 2 blocks, mixer v2, class token middle" in rows["model"]
    assert rows["input"] == "pixels float32 (batch, 3, height, width)"
    assert rows["outputs"].startswith("logits")
    assert "28x28" in rows["preprocessing"] and "0.485" in rows["preprocessing"]
    assert rows["labels"].startswith(f"10: {LABELS[0]}, ")
    assert f"tiny.pth, SHA-256 {digest}" in rows["provenance"]


def test_info_lists_graph_weights_and_program(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("info", tiny_model, "--graph", "--weights", "--program", "--batch", "2", "--image-size", "32x40")
    assert process.returncode == 0
    engine = package.Engine(tiny_model)
    for node in engine.info["nodes"]:
        assert any(line.split()[:2] == [node["op"], node["name"]] for line in process.stdout.splitlines())
    for weight in engine.info["weights"]:
        assert f"{weight['name']} " in process.stdout
    program = engine.program(2, (32, 40))
    for step in program["steps"]:
        assert step["name"] in process.stdout
    assert "for batch 2, 32x40" in process.stdout
    assert f"{len(program['steps'])} steps" in process.stdout


def test_info_as_json(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("info", tiny_model, "--json", "--graph", "--weights", "--program")
    document = json.loads(process.stdout)
    engine = package.Engine(tiny_model)
    assert document["bytes"] == tiny_model.stat().st_size
    assert document["parameters"] == engine.info["parameters"] == sum(document["parameters_by_dtype"].values())
    assert document["labels"] == LABELS
    assert document["model"]["config"]["d_model"] == 32
    assert [node["name"] for node in document["graph"]["nodes"]] == [node["name"] for node in engine.info["nodes"]]
    assert [weight["name"] for weight in document["weights"]] == [w["name"] for w in engine.info["weights"]]
    assert document["program"] == json.loads(json.dumps(engine.program(1)))


def test_plan_shows_peak_and_bound(vimrt: Vimrt, tiny_model: Path) -> None:
    process = vimrt("plan", tiny_model, "--batch", "2", "--image-size", "56")
    assert (process.returncode, process.stderr) == (0, "")
    assert "batch 2, 56x56" in process.stdout
    figures = {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in process.stdout.splitlines()[2:7]}
    assert set(figures) == {"peak", "lower bound", "ratio", "unplanned", "buffers"}
    assert figures["ratio"][0] == "1.0000"


def test_plan_as_json(vimrt: Vimrt, tiny_model: Path) -> None:
    document = json.loads(vimrt("plan", tiny_model, "--json", "--batch", "3").stdout)
    program = package.Engine(tiny_model).program(3)
    assert document["peak"] == program["peak"]
    arena = [buffer for buffer in program["buffers"] if buffer["offset"] >= 0]
    assert document["unplanned"] == sum(buffer["size"] for buffer in arena) >= document["peak"] > 0
    assert document["arena_buffers"] == len(arena)
    assert document["steps"] == program["steps"]
    assert document["largest"][0]["size"] == max(buffer["size"] for buffer in arena)


def test_the_drawing_is_xml_with_every_buffer(vimrt: Vimrt, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    process = vimrt("plan", tiny_model, "--svg", path)
    assert process.returncode == 0
    assert str(path) in process.stdout
    drawing = ElementTree.parse(path).getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    text = path.read_text()
    for buffer in package.Engine(tiny_model).program()["buffers"]:
        if buffer["offset"] >= 0:
            assert buffer["name"] in text
    assert [file.name for file in tmp_path.iterdir()] == ["plan.svg"]


def test_a_drawing_that_cannot_be_written_is_one_line(vimrt: Vimrt, tiny_model: Path, tmp_path: Path) -> None:
    process = vimrt("plan", tiny_model, "--svg", tmp_path / "missing" / "plan.svg")
    assert process.returncode == 1
    assert process.stderr.startswith("vimrt: error: ") and process.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["info", "plan"])
def test_an_image_smaller_than_a_patch_is_refused(name: str, vimrt: Vimrt, tiny_model: Path) -> None:
    options = ["--program"] if name == "info" else []
    process = vimrt(name, tiny_model, *options, "--image-size", "2")
    assert process.returncode == 1
    assert process.stderr.startswith("vimrt: error: ") and process.stderr.count("\n") == 1

"""`vimrt run`: images and folders in; labels and probabilities, as a table or JSON, out."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest
from conftest import LABELS, Vimrt, command

import vimrt as package


def test_a_folder_is_searched_and_sorted(vimrt: Vimrt, tiny_model: Path, images: Path) -> None:
    process = vimrt("run", tiny_model, images, "--top-k", "1")
    assert (process.returncode, process.stderr) == (0, "")
    header, *rows = [line.rstrip() for line in process.stdout.splitlines()]
    assert header.split() == ["file", "label", "probability"]
    assert [row.split()[0] for row in rows] == [str(images / name) for name in ("a.jpg", "b.png", "inner/[c].PNG")]


def test_the_table_shows_what_the_engine_says(vimrt: Vimrt, tiny_model: Path, images: Path) -> None:
    process = vimrt("run", tiny_model, images / "a.jpg", "--top-k", "3")
    expected = package.Engine(tiny_model).classify(images / "a.jpg", top_k=3)
    rows = process.stdout.splitlines()[1:]
    assert len(rows) == 3
    for row, (label, probability) in zip(rows, expected, strict=True):
        assert row.split() == [str(images / "a.jpg"), *label.split(), f"{probability:.4f}"]


def test_json_is_one_document(vimrt: Vimrt, tiny_model: Path, images: Path) -> None:
    process = vimrt("run", tiny_model, images, "--json", "--batch-size", "2", "--image-size", "32x40")
    assert (process.returncode, process.stderr) == (0, "")
    document = json.loads(process.stdout)
    assert document["image_size"] == [32, 40]
    engine = package.Engine(tiny_model)
    for result in document["results"]:
        expected = engine.classify(result["file"], top_k=5, image_size=(32, 40))
        assert [entry["label"] for entry in result["predictions"]] == [label for label, _ in expected]
        found = [entry["probability"] for entry in result["predictions"]]
        assert found == pytest.approx([probability for _, probability in expected], rel=1e-4)
        assert {entry["label"] for entry in result["predictions"]} <= set(LABELS)
    assert [Path(result["file"]).name for result in document["results"]] == ["a.jpg", "b.png", "[c].PNG"]


def test_a_broken_image_is_one_line_and_the_others_go_on(vimrt: Vimrt, tiny_model: Path, images: Path) -> None:
    (images / "aa.png").write_bytes((images / "b.png").read_bytes()[:100])
    process = vimrt("run", tiny_model, images, images / "gone.png", "--json")
    assert process.returncode == 1
    lines = process.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"vimrt: error: {images / 'aa.png'}: ")
    assert lines[1] == f"vimrt: error: {images / 'gone.png'}: there is no such file"
    results = {Path(result["file"]).name: result for result in json.loads(process.stdout)["results"]}
    assert "error" in results["aa.png"] and "predictions" not in results["aa.png"]
    assert len(results["a.jpg"]["predictions"]) == len(results["[c].PNG"]["predictions"]) == 5


def test_only_broken_images_print_no_table(vimrt: Vimrt, tiny_model: Path, tmp_path: Path) -> None:
    process = vimrt("run", tiny_model, tmp_path / "none.png")
    assert (process.returncode, process.stdout) == (1, "")


def test_a_folder_without_images_is_named(vimrt: Vimrt, tiny_model: Path, tmp_path: Path) -> None:
    process = vimrt("run", tiny_model, tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith(f"vimrt: error: {tmp_path}: the folder has no images; looked for .avif .bmp")


def test_too_little_memory_says_how_much_is_needed(vimrt: Vimrt, tiny_model: Path, images: Path) -> None:
    process = vimrt("run", tiny_model, images, "--max-memory", "1K")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "max_memory" in process.stderr


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """Everything the command writes to a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(*arguments), stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm"} | environment
    )
    os.close(slave)
    written = bytearray()
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # how Linux tells that the other side is closed
            break
        written += chunk
    os.close(master)
    assert process.wait() == 0
    return written.decode()


def test_a_terminal_gets_a_progress_bar_and_colours(tiny_model: Path, images: Path) -> None:
    written = on_a_terminal("run", tiny_model, images, images, "--top-k", "1", NO_COLOR="")
    assert "classifying" in written
    assert "\x1b[1m" in written


def test_no_color_is_respected(tiny_model: Path, images: Path) -> None:
    written = on_a_terminal("info", tiny_model, NO_COLOR="1")
    assert "\x1b[3" not in written


def test_labels_cannot_move_the_cursor(vimrt: Vimrt, tiny_checkpoint: Path, images: Path, tmp_path: Path) -> None:
    labels = ["\x1b[2Jevil", *LABELS[1:]]
    package_export = pytest.importorskip("vimrt.export")
    package_export.export_checkpoint(tiny_checkpoint, tmp_path / "evil.vimrt", labels=labels)
    process = vimrt("run", tmp_path / "evil.vimrt", images / "a.jpg", "--top-k", "10")
    assert process.returncode == 0
    assert "\x1b" not in process.stdout
    assert "\\x1b[2Jevil" in process.stdout

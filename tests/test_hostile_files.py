"""Damaged and malicious files through the installed package: FormatError, and nothing worse.

The checks themselves are tested one by one in tests/cpp/file_test.cpp and graph_test.cpp, and tests/fuzz/run.py tries
many more files under sanitizers; here it is what Python users see.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vimrt

Header = dict[str, Any]


def read(path: Path) -> tuple[Header, bytes]:
    """Header and tensor data of a .vimrt file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: Header | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def damaged(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the tiny model with its header, or one of the JSON texts in its metadata, changed in place."""

    def damage(change: Callable[[Any], None], text: str | None = None) -> Path:
        header, data = read(tiny_model)
        if text is None:
            change(header)
        else:
            parsed = json.loads(header["__metadata__"][text])
            change(parsed)
            header["__metadata__"][text] = json.dumps(parsed)
        return write(tmp_path / "damaged.vimrt", header, data)

    return damage


def refusal(path: Path | str) -> str:
    """The message of the FormatError, which is one line and names the file."""
    with pytest.raises(vimrt.FormatError) as error:
        vimrt.Engine(path, device="cpu")
    message = str(error.value)
    assert isinstance(error.value, ValueError)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 2000
    return message


# What is no file


def test_paths_without_a_model(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.vimrt")
    assert "no regular file" in refusal(tmp_path)
    assert "no regular file" in refusal("/dev/zero")
    (tmp_path / "empty.vimrt").touch()
    assert "0 bytes" in refusal(tmp_path / "empty.vimrt")
    os.mkfifo(tmp_path / "pipe.vimrt")
    assert "no regular file" in refusal(tmp_path / "pipe.vimrt")
    (tmp_path / "loop.vimrt").symlink_to("loop.vimrt")
    assert "symbolic links" in refusal(tmp_path / "loop.vimrt")
    with pytest.raises(vimrt.FormatError, match="NUL"):
        vimrt.Engine("/dev/null\0.vimrt", device="cpu")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_says_so(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "private.vimrt"
    path.write_bytes(tiny_model.read_bytes())
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "other.vimrt"
    for content in (b"\x89PNG\r\n\x1a\n" * 10, b"PK\x03\x04" * 100, b"\x80\x02}q\x00." * 10, b"{}" * 100, bytes(1000)):
        path.write_bytes(content)
        assert "no .vimrt file" in refusal(path)


def test_a_safetensors_file_of_another_program_is_told_how_to_become_one(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "weights.safetensors"
    save_file({"x": numpy.zeros(3, numpy.float32)}, path)
    assert "vimrt export" in refusal(path)
    save_file({"x": numpy.zeros(3, numpy.float32)}, path, metadata={"format": "pt"})
    assert '"pt" where "vimrt" was expected' in refusal(path)
    save_file({"x": numpy.zeros(3, numpy.float64)}, path)
    assert "F64" in refusal(path)


# What the engine checks beyond the loader


def test_a_newer_format_is_refused_by_its_version(damaged: Callable[..., Path]) -> None:
    path = damaged(lambda header: header["__metadata__"].update(format_version="2"))
    assert "format version 2, but this vimrt reads versions up to 1; install a newer vimrt" in refusal(path)


def test_shapes_that_do_not_infer_are_refused_on_load(damaged: Callable[..., Path]) -> None:
    def exchange(graph: Any) -> None:
        graph["nodes"][-1]["weights"]["weight"] = "norm_f.weight"

    message = refusal(damaged(exchange, "graph"))
    assert 'node "head": the weight "weight" (tensor "norm_f.weight") has the shape (32,)' in message
    assert "(any, 32) was expected" in message


def test_labels_that_are_not_one_for_each_class_are_refused(damaged: Callable[..., Path]) -> None:
    assert '9 labels where the output "logits" has 10 classes' in refusal(
        damaged(lambda labels: labels.pop(), "labels")
    )


def test_an_image_size_below_one_patch_is_refused_on_load(damaged: Callable[..., Path]) -> None:
    message = refusal(damaged(lambda recipe: recipe.update(image_size=[3, 28]), "preprocessing"))
    assert "image of 3x28 is smaller than one patch of 4x4" in message


def test_names_that_are_hard_to_print_are_printed(damaged: Callable[..., Path]) -> None:
    """Quotes, control characters and long names come out escaped and cut, on one line."""
    for name in ('quote"', "line\nbreak", "\x1b[31mred", "€" * 300, "\x00", "\u2028", "\ud7ff", "😀" * 100):

        def rename(header: Header, name: str = name) -> None:
            header[name] = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}

        assert "F32, F16 or BF16" in refusal(damaged(rename))


def test_bytes_that_are_no_utf8_are_reported_as_damage(tiny_model: Path, tmp_path: Path) -> None:
    _, data = read(tiny_model)
    for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
        assert "no valid JSON" in refusal(write(tmp_path / "bad.vimrt", b'{"' + bad + b'":1}', data))


def test_a_header_of_a_hundred_megabytes_is_refused_in_little_memory(tmp_path: Path) -> None:
    """Measured in a process of its own, and not by getrusage, which keeps the peak of the process that forked it."""
    path = tmp_path / "large.vimrt"
    write(path, b'{"a":[' + b"0," * 40_000_000 + b"0]}", b"")
    script = f"""
        from pathlib import Path
        import vimrt
        try:
            vimrt.Engine({str(path)!r}, device="cpu")
        except vimrt.FormatError as error:
            assert "values" in str(error), error
            status = Path("/proc/self/status").read_text()
            print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 700  # MiB, of which some 80 are the file itself and 60 Python and NumPy


# Random damage


def random_text(header: Header, chance: random.Random) -> Header:
    """Changes one character of one metadata text, most often to a digit, a bracket or nothing."""
    metadata = header["__metadata__"]
    key = chance.choice(["graph", "graph", "graph", "preprocessing", "labels", "format_version"])
    at = chance.randrange(len(metadata[key]))
    metadata[key] = metadata[key][:at] + chance.choice(["", *'0129-.e{}[]",:\\\n\x00é']) + metadata[key][at + 1 :]
    return header


def random_entry(header: Header, chance: random.Random) -> Header:
    """Gives one field of one tensor's entry a value that it should not have."""
    name = chance.choice([name for name in header if name != "__metadata__"])
    key = chance.choice(["dtype", "shape", "data_offsets"])
    value: Any = [0, -1, 2**31, 2**63, 2**64, 1.5, "F64", None, [], {}, [0], [2**62, 4], [[1]], [-1, 0], "x" * 1000]
    header[name][key] = chance.choice(value)
    return header


def random_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flips, cuts, inserts or doubles bytes, half of the time near the start."""
    at = chance.randrange(len(content) if chance.random() < 0.5 else 4096)
    return chance.choice(
        [
            content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :],
            content[:at],
            content[:at] + chance.randbytes(1 + chance.randrange(16)) + content[at:],
            content[:at] + content[at + 1 + chance.randrange(16) :],
            content[:8] + content[at:] + content[8:at],
            chance.randbytes(8) + content[8:],
        ]
    )


TRY_FILES = """
    import faulthandler, sys
    from pathlib import Path
    import numpy as np
    import vimrt

    faulthandler.enable()
    images = np.zeros((1, 3, 28, 28), np.float32)
    for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            engine = vimrt.Engine(path, device="cpu", threads=1, max_memory=64 << 20)
            engine.run(images, outputs=engine.outputs)
            print("ran")
        except vimrt.FormatError as error:
            assert str(path) in str(error), error
            print("refused")
        except (vimrt.InvalidArgument, vimrt.OutOfMemory):
            print("not run")
"""


def test_five_hundred_damaged_files_do_no_harm(tiny_model: Path, tmp_path: Path) -> None:
    """In a process of its own: whatever is wrong with a file, the process goes on to the last one."""
    chance = random.Random(20240117)
    for i in range(500):
        header, data = read(tiny_model)
        path = tmp_path / f"{i:03}.vimrt"
        kind = i % 3
        if kind == 0:
            write(path, random_text(header, chance), data)
        elif kind == 1:
            write(path, random_entry(header, chance), data)
        else:
            path.write_bytes(random_bytes(tiny_model.read_bytes(), chance))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRY_FILES), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split("\n")[:-1]
    assert len(outcomes) == 500
    assert outcomes.count("refused") > 250
    assert outcomes.count("ran") > 25  # damage to weights alone is none that can be seen

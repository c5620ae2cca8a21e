"""What all commands share: help, exit codes, errors in one line, interruption, closed pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from conftest import Vimrt, command, start_interruptible

import vimrt as package
from vimrt.cli import main

COMMANDS = ["export", "run", "info", "plan", "bench", "verify", "demo"]


def assert_one_error_line(process: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert process.stdout == ""
    assert process.stderr.startswith("vimrt: error: ")
    assert process.stderr.count("\n") == 1
    for text in texts:
        assert text in process.stderr


def test_the_installed_script_is_this_command() -> None:
    (script,) = entry_points(group="console_scripts", name="vimrt")
    assert script.load() is main


def test_version(vimrt: Vimrt) -> None:
    process = vimrt("--version")
    assert (process.returncode, process.stdout) == (0, f"vimrt {package.__version__}\n")


def test_help_lists_every_command(vimrt: Vimrt) -> None:
    process = vimrt("--help")
    assert process.returncode == 0
    for name in COMMANDS:
        assert f"\n    {name} " in process.stdout
    assert "examples:" in process.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([name, "--help"])
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    assert f"examples:\n  vimrt {name}" in printed


def test_top_level_help_imports_no_heavy_package() -> None:
    script = (
        "import sys; from vimrt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sorted({'torch', 'rich', 'PIL', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stderr == "\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "required: MODEL, IMAGE_OR_FOLDER"),
        (["run", "m.vimrt", "x.png", "--top-k", "0"], "'0' is no whole number above zero"),
        (["info", "m.vimrt", "--image-size", "big"], "'big' is no image size"),
        (["plan", "m.vimrt", "--max-memory", "lots"], "'lots' is no amount of memory"),
        (["bench", "m.vimrt", "--compare", "resnet"], "invalid choice: 'resnet'"),
        (["bench", "m.vimrt", "--plot", "plot.txt"], "'plot.txt' is no plot file"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(arguments: list[str], text: str, vimrt: Vimrt) -> None:
    process = vimrt(*arguments)
    assert process.returncode == 2
    assert_one_error_line(process, text, "--help`")


@pytest.mark.parametrize("name", ["run", "info", "plan", "bench"])
def test_a_missing_model_is_one_line_and_exits_with_1(name: str, vimrt: Vimrt, images: Path) -> None:
    process = vimrt(name, "missing.vimrt", *([images] if name == "run" else []))
    assert process.returncode == 1
    assert_one_error_line(process, "missing.vimrt")


def test_a_file_that_is_no_model_is_named(vimrt: Vimrt, tmp_path: Path) -> None:
    path = tmp_path / "photo.vimrt"
    path.write_bytes(b"\x89PNG" * 100)
    process = vimrt("info", path)
    assert process.returncode == 1
    assert_one_error_line(process, str(path))


def test_a_wrong_checkpoint_lists_its_tensors(vimrt: Vimrt, tmp_path: Path) -> None:
    import torch

    torch.save({"model": {"layers.0.mixer.in_proj.weight": torch.zeros(4, 2)}}, tmp_path / "bad.pth")
    process = vimrt("export", tmp_path / "bad.pth")
    assert process.returncode == 1
    assert process.stderr.startswith("vimrt: error: bad.pth: ")
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "bad.vimrt").exists()


def test_export_then_verify(vimrt: Vimrt, tiny_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.vimrt"
    assert vimrt("export", tiny_checkpoint, "-o", output).returncode == 0
    process = vimrt("verify", output, tiny_checkpoint)
    assert (process.returncode, process.stderr) == (0, "")
    assert "agree" in process.stdout


def test_the_traceback_is_shown_when_asked_for(vimrt: Vimrt) -> None:
    assert "Traceback" in vimrt("info", "missing.vimrt", VIMRT_TRACEBACK="1").stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("rich", ["info", "m"], "cli"), ("PIL", ["run", "m", "x.png"], "cli"), ("matplotlib", ["bench"], "plot")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, arguments: list[str], extra: str, tiny_model: Path
) -> None:
    if package == "matplotlib":
        arguments = ["bench", str(tiny_model), "--plot", "plot.png"]
    script = f"import sys; sys.modules[{package!r}] = None; from vimrt.cli import main; sys.exit(main({arguments!r}))"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 1
    assert_one_error_line(process, f"needs {package}", f'pip install "vimrt[{extra}]"')


def test_interruption_is_one_line_and_exits_with_130(tiny_model: Path) -> None:
    arguments = ("bench", tiny_model, "--runs", 10**9, "--budget", 300)
    with start_interruptible(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None and process.stdout is not None
        while "timing" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
        assert rest == "vimrt: interrupted\n"
        assert process.stdout.read() == ""


@pytest.mark.parametrize("arguments", [["info", "--graph"], ["info", "--json", "--weights"], ["plan"]])
def test_a_reader_that_stops_reading_ends_the_command_quietly(arguments: list[str], tiny_model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        process = subprocess.run(
            command(arguments[0], tiny_model, *arguments[1:]), stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert (process.returncode, process.stderr) == (141, "")


def test_an_encoding_without_the_label_is_no_failure(vimrt: Vimrt, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "größe.vimrt"
    model.write_bytes(tiny_model.read_bytes())
    process = vimrt("info", model, PYTHONIOENCODING="ascii")
    assert process.returncode == 0
    assert "gr\\xf6\\xdfe.vimrt" in process.stdout


@pytest.mark.parametrize(("text", "size"), [("1000000", 10**6), ("800M", 800 * 2**20), ("1.5GiB", 3 * 2**29)])
def test_amounts_of_memory(text: str, size: int) -> None:
    from vimrt.cli.options import memory_size

    assert memory_size(text) == size

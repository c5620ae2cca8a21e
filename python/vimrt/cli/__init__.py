"""The command `vimrt`. Each subcommand has a module of its own, imported only when that subcommand runs.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted, 141 when whoever reads the output has stopped reading.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from .. import Error, __version__

_EXAMPLES = """\
examples:
  vimrt export vim_s.pth -o vim_s.vimrt     make a .vimrt file from a checkpoint
  vimrt run vim_s.vimrt photo.jpg           classify a photograph
  vimrt bench vim_s.vimrt --compare deit    measure it against DeiT in PyTorch

`vimrt COMMAND --help` shows a command's options and examples of its own.
A failure is one line on stderr; VIMRT_TRACEBACK=1 shows where in the code it came from.
"""


class _Command(NamedTuple):
    summary: str
    module: str
    add_parser: str


_COMMANDS = {
    "export": _Command("make a .vimrt file from a checkpoint", "..export.cli", "add_export_parser"),
    "run": _Command("classify images", ".run", "add_parser"),
    "info": _Command("show what a .vimrt file holds and which steps run", ".info", "add_parser"),
    "plan": _Command("show how activations share memory", ".plan", "add_parser"),
    "bench": _Command("measure speed and memory, beside PyTorch if wanted", ".bench", "add_parser"),
    "verify": _Command("compare a .vimrt file with its checkpoint in PyTorch", "..export.cli", "add_verify_parser"),
    "demo": _Command("classify the example's images with its trained model", ".demo", "add_parser"),
}

# The extra of vimrt that brings each module which commands may miss.
_EXTRAS = {"PIL": "cli", "rich": "cli", "torch": "export", "safetensors": "export", "matplotlib": "plot"}


class CommandError(Exception):
    """A command cannot do what was asked. The message is one line that says what was given and what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vimrt: error: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns its exit code.

    Raises:
        SystemExit: the usage is wrong (2), or --help or --version was asked for (0).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    _print_whatever_the_encoding()
    try:
        args = _parser(arguments).parse_args(arguments)
        code: int = args.func(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("vimrt: interrupted", 130)
    except BrokenPipeError:
        _discard_output()
        return 141
    except Exception as error:
        if os.environ.get("VIMRT_TRACEBACK", "") not in ("", "0"):
            raise
        return _fail(f"vimrt: error: {_message(error)}", 1)
    return code


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the options of the one command that `arguments` names."""
    parser = _Parser(
        prog="vimrt",
        description="Vision Mamba models from one file, without PyTorch.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vimrt {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, command in _COMMANDS.items():
        if name == chosen:
            getattr(importlib.import_module(command.module, __package__), command.add_parser)(subparsers)
        else:
            subparsers.add_parser(name, help=command.summary)
    return parser


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in _EXTRAS:
            return f'this needs {package}, which is not installed; run: pip install "vimrt[{_EXTRAS[package]}]"'
    if isinstance(error, OSError) and error.filename is not None:
        return _one_line(f"{os.fspath(error.filename)}: {error.strerror}")
    if isinstance(error, MemoryError) and not isinstance(error, Error):
        return _one_line(f"there is not enough memory: {error}" if str(error) else "there is not enough memory")
    if isinstance(error, CommandError | Error | OSError):
        return _one_line(str(error))
    if _is_export_error(error):
        return str(error)  # may list tensors on lines of their own
    kind = type(error).__name__
    return _one_line(f"unexpected {kind}: {error}; run again with VIMRT_TRACEBACK=1 and report what it prints")


def _is_export_error(error: Exception) -> bool:
    # Asked only where something of vimrt.export was imported, and may have been raised, already.
    module = sys.modules.get(f"{__package__.rpartition('.')[0]}.export.errors")
    return module is not None and isinstance(error, module.ExportError)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _print_whatever_the_encoding() -> None:
    """A file name or label that stdout's encoding lacks is printed in escapes instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What is left in stdout's buffer goes nowhere, so that the interpreter's last flush finds no broken pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

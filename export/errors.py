"""The error of everything that can go wrong between a checkpoint and a .vimrt file."""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint, a file or an option that cannot be used.

    The message says what was given, what was expected and what to do. It is one statement; the report on a checkpoint
    whose tensors do not fit continues on further lines.
    """

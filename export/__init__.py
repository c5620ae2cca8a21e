"""From a Vision Mamba checkpoint to a .vimrt file, and back to the reference that checks it.

    from vimrt.export import export_checkpoint
    report = export_checkpoint("vim_s.pth", "vim_s.vimrt", dtype="fp16")

Importing this package needs NumPy alone; PyTorch is imported when a .pth file is read or the reference model is used.
"""

from .checkpoint import Checkpoint, read_checkpoint
from .config import VimConfig
from .convert import ExportReport, export_checkpoint
from .errors import ExportError
from .recognise import Choices, Recognised, Row, recognise
from .verify import Comparison, VerifyReport, verify

__all__ = [
    "Checkpoint",
    "Choices",
    "Comparison",
    "ExportError",
    "ExportReport",
    "Recognised",
    "Row",
    "VerifyReport",
    "VimConfig",
    "export_checkpoint",
    "read_checkpoint",
    "recognise",
    "verify",
]

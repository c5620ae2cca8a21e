"""vimrt runs Vision Mamba models from one file, without PyTorch.

    import vimrt

    engine = vimrt.Engine("vim_s.vimrt")
    engine.classify("photo.jpg", top_k=5)   # [(label, probability), ...]
    logits = engine.run(batch)              # float32 (B, 3, H, W), already normalised -> (B, classes)

A file is made from a checkpoint with `vimrt export`, or with vimrt.export.export_checkpoint.
"""

from ._vimrt import (
    DeviceError,
    Error,
    FormatError,
    InvalidArgument,
    MemoryPlan,
    OutOfMemory,
    __version__,
    memory_lower_bound,
    plan_memory,
    validate_memory_plan,
)
from .device_array import DeviceArray, Pending
from .engine import DeviceWarning, Engine, Prediction, Profile, StepTime
from .images import load_image

__all__ = [
    "DeviceArray",
    "DeviceError",
    "DeviceWarning",
    "Engine",
    "Error",
    "FormatError",
    "InvalidArgument",
    "MemoryPlan",
    "OutOfMemory",
    "Pending",
    "Prediction",
    "Profile",
    "StepTime",
    "__version__",
    "load_image",
    "memory_lower_bound",
    "plan_memory",
    "validate_memory_plan",
]

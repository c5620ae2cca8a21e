"""What counts as a photograph: paths, PIL images and uint8 arrays, all brought to RGB (H, W, 3)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._vimrt import InvalidArgument

if TYPE_CHECKING:
    from PIL import Image

ByteArray: TypeAlias = npt.NDArray[np.uint8]
Photograph: TypeAlias = "str | os.PathLike[str] | Image.Image | ByteArray"


def load_image(path: str | os.PathLike[str]) -> ByteArray:
    """Reads an image file as RGB.

    The orientation that cameras record in EXIF is applied. Needs Pillow (`pip install "vimrt[cli]"`).

    Returns:
        uint8 (H, W, 3).

    Raises:
        InvalidArgument: the file is missing, no image, damaged, or larger than Pillow's limit against
            decompression bombs.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise InvalidArgument('reading image files needs Pillow; install it with: pip install "vimrt[cli]"') from error
    try:
        with Image.open(Path(path)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise InvalidArgument(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise InvalidArgument(f"{path}: is no image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgument(f"{path}: cannot be read as an image: {error}") from error


def is_photograph(value: Any) -> bool:
    """Whether `value` is one image by itself: a path, a PIL image, or a uint8 array of 2 or 3 dimensions."""
    if isinstance(value, str | os.PathLike):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (2, 3)
    return _is_pil(value)


def to_rgb(value: Photograph) -> ByteArray:
    """One photograph as a dense uint8 (H, W, 3). Gray (H, W) and (H, W, 1) are repeated over the channels."""
    if isinstance(value, str | os.PathLike):
        return load_image(value)
    if not isinstance(value, np.ndarray) and _is_pil(value):
        return np.asarray(value.convert("RGB"))
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise InvalidArgument(f"{kind} is no photograph; give a path, a PIL image or a uint8 (H, W, 3) array")
    if value.ndim == 2:
        value = value[:, :, np.newaxis]
    if value.ndim != 3 or value.shape[2] not in (1, 3):
        raise InvalidArgument(f"an image has the shape {value.shape}; (H, W, 3) or gray (H, W) was expected")
    if value.shape[2] == 1:
        value = np.repeat(value, 3, axis=2)
    return np.ascontiguousarray(value)


def _is_pil(value: Any) -> bool:
    # Without importing Pillow: a PIL image exists only where someone else has.
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)

"""resize_and_crop and normalize against Pillow, torchvision's arithmetic and fp64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vimrt._vimrt import normalize, resize_and_crop

Pixels = npt.NDArray[np.uint8]


def noise(rows: int, columns: int, seed: int = 0) -> Pixels:
    """Noise with a smooth half, so that clipping and small differences both occur."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    waves = 127 + 120 * np.sin(
        np.arange(rows)[:, None, None] / 7 + np.arange(columns)[None, :, None] / 11 + np.arange(3)
    )
    image[rows // 2 :] = waves[rows // 2 :].astype(np.uint8)
    return image


def covering_size(image: Pixels, image_size: tuple[int, int], crop: float) -> tuple[int, int]:
    """Rows and columns of the resized image, as the file format's page says it."""
    rows, columns = image.shape[:2]
    target_rows, target_columns = (round(side / crop) for side in image_size)
    if columns * target_rows >= rows * target_columns:
        return target_rows, target_rows * columns // rows
    return target_columns * rows // columns, target_columns


def pillow_resize_and_crop(image: Pixels, image_size: tuple[int, int], crop: float) -> Pixels:
    """The recipe in Pillow. Two calls of one pass each, because Pillow 13 sometimes resizes rows before columns."""
    rows, columns = covering_size(image, image_size, crop)
    picture = Image.fromarray(image).resize((columns, image.shape[0]), Image.Resampling.BICUBIC)
    picture = picture.resize((columns, rows), Image.Resampling.BICUBIC)
    top, left = round((rows - image_size[0]) / 2.0), round((columns - image_size[1]) / 2.0)
    return np.asarray(picture.crop((left, top, left + image_size[1], top + image_size[0])))


@pytest.mark.parametrize("crop", [0.875, 1.0, 0.5])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (256, 256), (224, 224), (480, 640), (640, 480), (1080, 1920), (3000, 4000), (257, 999), (255, 257),
        (1, 1), (1, 7), (7, 1), (2, 3), (31, 33), (1, 300), (300, 1), (3, 900), (900, 3), (28, 28),
    ],
)  # fmt: skip
def test_equals_pillow_for_the_published_size(rows: int, columns: int, crop: float) -> None:
    image = noise(rows, columns)
    expected = pillow_resize_and_crop(image, (224, 224), crop)
    np.testing.assert_array_equal(resize_and_crop(image, image_size=(224, 224), crop=crop), expected)


@pytest.mark.parametrize(("rows", "columns"), [(480, 640), (1500, 1001), (300, 200), (100, 140), (224, 398)])
def test_equals_one_call_of_pillow_for_ordinary_photographs(rows: int, columns: int) -> None:
    image = noise(rows, columns)
    resized_rows, resized_columns = covering_size(image, (224, 224), 0.875)
    whole = Image.fromarray(image).resize((resized_columns, resized_rows), Image.Resampling.BICUBIC)
    top, left = round((resized_rows - 224) / 2.0), round((resized_columns - 224) / 2.0)
    expected = np.asarray(whole)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(resize_and_crop(image, image_size=(224, 224), crop=0.875), expected)


sides = st.integers(1, 160) | st.sampled_from([1, 2, 255, 256, 257, 600])


@settings(max_examples=300, deadline=None)
@given(sides, sides, sides, sides, st.floats(0.4, 1.0), st.integers(0, 2**32 - 1))
def test_equals_pillow_for_any_sizes(
    rows: int, columns: int, out_rows: int, out_columns: int, crop: float, seed: int
) -> None:
    image = noise(rows, columns, seed)
    resized_rows, resized_columns = covering_size(image, (out_rows, out_columns), crop)
    if (
        max(resized_columns * rows, resized_columns * resized_rows) > 10_000_000
    ):  # Pillow resizes what is cropped away too
        out_rows, out_columns = out_rows % 16 + 1, out_columns % 16 + 1
    expected = pillow_resize_and_crop(image, (out_rows, out_columns), crop)
    np.testing.assert_array_equal(resize_and_crop(image, image_size=(out_rows, out_columns), crop=crop), expected)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 500))
def test_square_recipes_resize_as_torchvision_does(rows: int, columns: int, side: int) -> None:
    short, long = min(rows, columns), max(rows, columns)
    expected = side, int(side * long / short)
    got = covering_size(np.empty((rows, columns, 0), np.uint8), (side, side), 1.0)
    assert (min(got), max(got)) == expected
    assert (got[1] >= got[0]) == (columns >= rows) or got[0] == got[1]


@pytest.mark.parametrize(
    "select",
    [
        lambda image: image[::2, 3:200],
        lambda image: image[::-1],
        lambda image: image[:, ::-1],
        lambda image: image[:, :, ::-1],
        lambda image: image.transpose(1, 0, 2),
        lambda image: np.asfortranarray(image),
        lambda image: np.broadcast_to(image[:1], image.shape),
    ],
)
def test_any_memory_layout_gives_the_dense_copys_result(select: Any) -> None:
    image = select(noise(260, 300))
    dense = np.ascontiguousarray(image)
    np.testing.assert_array_equal(
        resize_and_crop(image, image_size=(64, 48)), resize_and_crop(dense, image_size=(64, 48))
    )
    np.testing.assert_array_equal(normalize(image), normalize(dense))


def test_normalize_is_float32_arithmetic_channels_first() -> None:
    image = noise(50, 70)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scaled = image.astype(np.float32) / np.float32(255)
    expected = ((scaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)
    result = normalize(image, mean=mean, std=std)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "0x4"),
        (np.zeros((4, 0, 3), np.uint8), "4x0"),
    ],
)
def test_a_wrong_image_is_a_value_error_that_says_what_was_given(image: npt.NDArray[Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        resize_and_crop(image, image_size=(8, 8))
    with pytest.raises(ValueError, match=part):
        normalize(image)


@pytest.mark.parametrize("crop", [0.0, -1.0, 1.01, float("nan")])
def test_a_wrong_crop_is_a_value_error(crop: float) -> None:
    with pytest.raises(ValueError, match="crop"):
        resize_and_crop(noise(4, 4), image_size=(8, 8), crop=crop)


def test_a_wrong_size_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="image_size"):
        resize_and_crop(noise(4, 4), image_size=(0, 8))

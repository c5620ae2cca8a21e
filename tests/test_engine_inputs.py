"""What the engine takes, what it refuses, and what it says then."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import vimrt

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> vimrt.Engine:
    return vimrt.Engine(tiny_model, device="cpu")


def pixels(batch: int = 1, height: int = 28, width: int = 28, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width), dtype=np.float32)


def photograph(height: int = 40, width: int = 50, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Shapes and dtypes


@pytest.mark.parametrize(
    "shape",
    [(), (28,), (28, 28), (3, 28, 28), (1, 1, 28, 28), (1, 4, 28, 28), (1, 28, 28, 3), (1, 1, 3, 28, 28), (1,) * 9],
)
def test_float_inputs_of_another_shape_are_refused(engine: vimrt.Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(vimrt.InvalidArgument, match=r"\(B, 3, H, W\)|at most 8"):
        engine.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 3, 28, 28), (1, 3, 0, 28), (1, 3, 28, 0), (0, 3, 0, 0)])
def test_empty_inputs_are_refused(engine: vimrt.Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(vimrt.InvalidArgument, match="empty"):
        engine.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int32, np.int64, np.uint16, np.bool_, np.complex64, np.dtype("U3"), object, np.dtype(">f4")]
)
def test_inputs_of_other_dtypes_are_refused(engine: vimrt.Engine, dtype: Any) -> None:
    with pytest.raises(vimrt.InvalidArgument, match="float32"):
        engine.run(np.zeros((1, 3, 28, 28), dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_converted(engine: vimrt.Engine, dtype: Any) -> None:
    values = pixels().astype(np.float16)
    np.testing.assert_array_equal(engine.run(values.astype(dtype)), engine.run(values.astype(np.float32)))


@pytest.mark.parametrize(
    "shape", [(1, 3, 28, 28), (28, 28, 4), (28, 28, 2), (28,), (2, 28, 28, 1), (1, 1, 28, 28, 3), (1, 3, 28, 4)]
)
def test_photographs_of_another_shape_are_refused(engine: vimrt.Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(vimrt.InvalidArgument, match=r"\(H, W, 3\)"):
        engine.run(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(0, 28, 3), (28, 0, 3), (0, 28, 28, 3), (1, 0, 28, 3), (0, 0)])
def test_empty_photographs_are_refused(engine: vimrt.Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(vimrt.InvalidArgument):
        engine.run(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, {}, b"bytes", object(), [], [None], [[1.0]], ["no such file.png"], {1, 2}]
)
def test_what_is_no_input_is_refused(engine: vimrt.Engine, value: Any) -> None:
    with pytest.raises(vimrt.InvalidArgument):
        engine.run(value)


def test_lists_of_photographs_of_any_sizes_make_a_batch(engine: vimrt.Engine, tmp_path: Path) -> None:
    gray = photograph()[:, :, 0]
    path = tmp_path / "image.png"
    Image.fromarray(photograph(seed=1)).save(path)
    logits = engine.run([photograph(), Image.fromarray(photograph(33, 29)), path, str(path), gray])
    assert logits.shape == (5, 10)
    np.testing.assert_array_equal(logits[2], logits[3])
    np.testing.assert_array_equal(logits[2:3], engine.run(photograph(seed=1)))


def test_extreme_photographs_run(engine: vimrt.Engine) -> None:
    for height, width in [(1, 1), (1, 3000), (3000, 1), (28, 28), (2, 28)]:
        assert np.isfinite(engine.run(photograph(height, width))).all()


# Memory layout


def test_arrays_need_not_be_dense(engine: vimrt.Engine) -> None:
    wide = pixels(2, 28, 56)
    expected = engine.run(np.ascontiguousarray(wide[:, :, :, ::2]))
    np.testing.assert_array_equal(engine.run(wide[:, :, :, ::2]), expected)
    np.testing.assert_array_equal(engine.run(np.asfortranarray(wide[:, :, :, ::2])), expected)
    flipped = photograph()[::-1, ::-1]
    np.testing.assert_array_equal(engine.run(flipped), engine.run(flipped.copy()))
    channels_last = np.moveaxis(photograph(), -1, 0).copy()
    np.testing.assert_array_equal(engine.run(np.moveaxis(channels_last, 0, -1)), engine.run(photograph()))


def test_unaligned_and_read_only_arrays_run(engine: vimrt.Engine) -> None:
    expected = engine.run(pixels())
    raw = np.zeros(pixels().nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(pixels().shape)
    unaligned[...] = pixels()
    np.testing.assert_array_equal(engine.run(unaligned), expected)
    frozen = pixels()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(engine.run(frozen), expected)


def test_the_input_is_left_as_it_was(engine: vimrt.Engine) -> None:
    given = pixels()
    engine.run(given, outputs=["patches", "tokens", "logits"])
    np.testing.assert_array_equal(given, pixels())


def test_dlpack_tensors_of_torch_run(engine: vimrt.Engine) -> None:
    torch = pytest.importorskip("torch")
    expected = engine.run(pixels(2))
    tensor = torch.from_numpy(pixels(2))
    np.testing.assert_array_equal(engine.run(tensor), expected)
    np.testing.assert_array_equal(engine.run(tensor.to(memory_format=torch.channels_last)), expected)
    np.testing.assert_array_equal(engine.run(tensor.double()), expected)


def test_dlpack_tensors_that_cannot_be_read_are_refused(engine: vimrt.Engine) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(pixels())
    for bad in (tensor.bfloat16(), tensor.requires_grad_(), tensor.detach().int(), tensor.detach().to("meta")):
        with pytest.raises(vimrt.InvalidArgument):
            engine.run(bad)


class ElsewhereTensor:
    """A DLPack tensor that says it is in CUDA memory, and must not be touched."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("the tensor was read")


def test_dlpack_tensors_of_another_device_are_refused(engine: vimrt.Engine) -> None:
    with pytest.raises(vimrt.InvalidArgument, match="another device"):
        engine.run(ElsewhereTensor())


# Values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_reach_the_logits_and_are_no_class(engine: vimrt.Engine, value: float) -> None:
    images = pixels(2)
    images[0, 1, 3, 5] = value
    logits = engine.run(images)
    assert not np.isfinite(logits[0]).any()
    np.testing.assert_array_equal(logits[1:], engine.run(images[1:]))
    with pytest.raises(vimrt.InvalidArgument, match="finite"):
        engine.top(logits[0])


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e6])
def test_values_of_any_scale_run(engine: vimrt.Engine, scale: float) -> None:
    assert np.isfinite(engine.run(pixels() * np.float32(scale))).all()


# Sizes


def test_images_smaller_than_a_patch_are_refused(engine: vimrt.Engine) -> None:
    with pytest.raises(vimrt.InvalidArgument, match="3x28 is smaller than one patch of 4x4"):
        engine.run(pixels(1, 3, 28))
    with pytest.raises(vimrt.InvalidArgument, match="smaller than one patch"):
        engine.run(photograph(), image_size=3)


@pytest.mark.parametrize("image_size", [0, -1, (28, 0), (-28, 28)])
def test_image_sizes_that_are_not_positive_are_refused(engine: vimrt.Engine, image_size: Any) -> None:
    for call in (lambda: engine.run(photograph(), image_size=image_size), lambda: engine.program(1, image_size)):
        with pytest.raises(vimrt.InvalidArgument, match="positive"):
            call()


@pytest.mark.parametrize("image_size", ["28", 28.5, (28,), (28, 28, 28), (28, "28"), [28.0, 28], 2**70])
def test_image_sizes_of_the_wrong_type_are_refused(engine: vimrt.Engine, image_size: Any) -> None:
    for call in (lambda: engine.run(photograph(), image_size=image_size), lambda: engine.program(1, image_size)):
        with pytest.raises(vimrt.InvalidArgument, match="image_size"):
            call()


def test_image_sizes_may_be_numpy_integers(engine: vimrt.Engine) -> None:
    expected = engine.run(photograph(), image_size=(32, 36))
    np.testing.assert_array_equal(engine.run(photograph(), image_size=(np.int64(32), np.int32(36))), expected)
    assert engine.run(photograph(), image_size=np.int64(32)).shape == (1, 10)


def test_sizes_beyond_any_memory_are_refused_and_not_tried(engine: vimrt.Engine) -> None:
    for size in (2**31, 2**40, 2**62):
        with pytest.raises((vimrt.InvalidArgument, vimrt.OutOfMemory), match=r"63 bits|bytes|memory"):
            engine.program(1, size)
        with pytest.raises((vimrt.InvalidArgument, vimrt.OutOfMemory)):
            engine.run(photograph(), image_size=size)
    with pytest.raises(vimrt.InvalidArgument, match="63 bits"):
        engine.program(2**62, 28)
    with pytest.raises(vimrt.InvalidArgument, match="positive"):
        engine.program(0)


def test_a_plan_of_a_huge_image_needs_no_memory_of_that_size(engine: vimrt.Engine) -> None:
    program = engine.program(1, 4096)
    assert program["peak"] == program["lower_bound"] > 1024 * 1024 * 32 * 4


# Outputs


def test_unknown_outputs_are_refused_with_the_known_ones(engine: vimrt.Engine) -> None:
    for name in ("nothing", "", "pixels", "Logits", "logits\0", "x" * 10_000, "€" * 1000):
        with pytest.raises(vimrt.InvalidArgument, match=r"no output .*logits, features, tokens"):
            engine.run(pixels(), outputs=[name])


@pytest.mark.parametrize("outputs", ["logits", [], ()])
def test_outputs_are_a_list_of_names(engine: vimrt.Engine, outputs: Any) -> None:
    with pytest.raises(vimrt.InvalidArgument, match="list of names"):
        engine.run(pixels(), outputs=outputs)


def test_an_output_may_be_asked_for_twice(engine: vimrt.Engine) -> None:
    found = engine.run(pixels(), outputs=["logits", "logits", "tokens"])
    assert list(found) == ["logits", "tokens"]
    np.testing.assert_array_equal(found["logits"], engine.run(pixels()))


def test_many_outputs_at_once(engine: vimrt.Engine) -> None:
    names = [name for node in engine.info["nodes"] for name in node["outputs"]]
    assert len(names) > 16
    found = engine.run(pixels(2), outputs=names)
    assert list(found) == names
    np.testing.assert_allclose(found["logits"], engine.run(pixels(2)), rtol=1e-5, atol=1e-5)


def test_out_receives_the_result(engine: vimrt.Engine) -> None:
    out = np.full((2, 10), np.nan, np.float32)
    assert engine.run(pixels(2), out=out) is out
    np.testing.assert_array_equal(out, engine.run(pixels(2)))


def frozen_array() -> Array:
    array = np.zeros((2, 10), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 10), np.float64),
        np.zeros((2, 20), np.float32)[:, ::2],
        np.zeros((10, 2), np.float32).T,
        frozen_array(),
        [[0.0] * 10] * 2,
        np.zeros((2, 9), np.float32),
        np.zeros((3, 10), np.float32),
        np.zeros(20, np.float32),
        np.zeros((0, 10), np.float32),
        np.zeros((2, 10), ">f4"),
    ],
)
def test_out_that_does_not_fit_is_refused(engine: vimrt.Engine, out: Any) -> None:
    with pytest.raises(vimrt.InvalidArgument, match="float32"):
        engine.run(pixels(2), out=out)


def test_out_goes_with_float_inputs_and_the_default_output(engine: vimrt.Engine) -> None:
    out = np.zeros((1, 10), np.float32)
    with pytest.raises(vimrt.InvalidArgument, match="float input"):
        engine.run(photograph(), out=out)
    with pytest.raises(vimrt.InvalidArgument, match="default output"):
        engine.run(pixels(), outputs=["logits"], out=out)  # type: ignore[call-overload]
    with pytest.raises(vimrt.InvalidArgument, match="image_size goes with photographs"):
        engine.run(pixels(), image_size=28)


def test_results_outlive_the_engine_and_each_other(tiny_model: Path) -> None:
    engine = vimrt.Engine(tiny_model, device="cpu")
    first = engine.run(pixels(seed=1))
    kept = first.copy()
    second = engine.run(pixels(seed=2))
    assert not np.shares_memory(first, second)
    del engine
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_must_be_positive(engine: vimrt.Engine, top_k: int) -> None:
    with pytest.raises(vimrt.InvalidArgument, match=f"top_k is {top_k}"):
        engine.classify(photograph(), top_k=top_k)


def test_top_k_beyond_the_classes_gives_all_of_them(engine: vimrt.Engine) -> None:
    predictions = engine.classify(photograph(), top_k=1000)
    assert sorted(p.label for p in predictions) == sorted(engine.labels)
    assert sum(p.probability for p in predictions) == pytest.approx(1, abs=1e-5)
    assert [p.probability for p in predictions] == sorted((p.probability for p in predictions), reverse=True)


def test_classify_takes_one_photograph(engine: vimrt.Engine) -> None:
    for bad in (pixels(), [photograph()], np.zeros((1, 28, 28, 3), np.uint8), None):
        with pytest.raises(vimrt.InvalidArgument, match="one photograph"):
            engine.classify(bad)
    for logits in (np.zeros((1, 10), np.float32), np.float32(1)):
        with pytest.raises(vimrt.InvalidArgument, match="classes"):
            engine.top(logits)
    with pytest.raises(vimrt.InvalidArgument, match="no logits"):
        engine.top(np.zeros(0, np.float32))


# Options of the engine


def test_devices_that_are_not_there_are_named(tiny_model: Path) -> None:
    for device in ("tpu", "", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:99999", "cuda:0:1", "é" * 200):
        with pytest.raises(vimrt.InvalidArgument, match='use "auto", "cpu", "cuda" or "cuda:N"'):
            vimrt.Engine(tiny_model, device=device)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_cuda_without_a_gpu_is_a_device_error(tiny_model: Path) -> None:
    for device in ("cuda", "cuda:0", "cuda:99"):
        with pytest.raises(vimrt.DeviceError) as error:
            vimrt.Engine(tiny_model, device=device)
        assert isinstance(error.value, RuntimeError)
        assert "\n" not in str(error.value)
    assert vimrt.Engine(tiny_model, device="auto").device == "cpu"


@pytest.mark.parametrize("name", ["threads", "max_memory"])
@pytest.mark.parametrize("value", [0, -1, 2**31 * -1, 2**70, 1.5, "2", "all"])
def test_counts_out_of_range_are_refused(tiny_model: Path, name: str, value: Any) -> None:
    with pytest.raises(vimrt.InvalidArgument, match=name):
        vimrt.Engine(tiny_model, device="cpu", **{name: value})


def test_more_threads_than_there_may_be_are_refused(tiny_model: Path) -> None:
    for threads in (1025, 2**31 - 1, 2**31, 2**40):
        with pytest.raises(vimrt.InvalidArgument, match=f"threads is {threads}"):
            vimrt.Engine(tiny_model, device="cpu", threads=threads)


def test_dtypes_are_checked(tiny_model: Path) -> None:
    for dtype in ("int8", "", "FP32", "é" * 200):
        with pytest.raises(vimrt.InvalidArgument, match='use "fp32", "fp16" or "bf16"'):
            vimrt.Engine(tiny_model, device="cpu", dtype=dtype)
    with pytest.raises((vimrt.InvalidArgument, vimrt.DeviceError), match=r"fp32|float32"):
        vimrt.Engine(tiny_model, device="cpu", dtype="fp16")
    assert vimrt.Engine(tiny_model, device="cpu", dtype="fp32").dtype == "float32"


def test_any_number_of_threads_gives_the_same_answer(tiny_model: Path) -> None:
    expected = vimrt.Engine(tiny_model, device="cpu", threads=1).run(pixels(3))
    for threads in (2, 3, 7):
        engine = vimrt.Engine(tiny_model, device="cpu", threads=threads)
        assert engine.threads == threads
        np.testing.assert_allclose(engine.run(pixels(3)), expected, rtol=1e-5, atol=1e-6)


# Memory


def test_one_image_over_the_limit_says_how_much_it_needs(tiny_model: Path) -> None:
    peak = vimrt.Engine(tiny_model, device="cpu").program(1)["peak"]
    engine = vimrt.Engine(tiny_model, device="cpu", max_memory=peak - 1)
    for call in (lambda: engine.run(pixels()), lambda: engine.run(pixels(4)), lambda: engine.run(photograph())):
        with pytest.raises(vimrt.OutOfMemory, match=rf"28x28 needs {peak} bytes .* max_memory = {peak - 1}") as error:
            call()
        assert isinstance(error.value, MemoryError)
    assert vimrt.Engine(tiny_model, device="cpu", max_memory=peak).run(pixels()).shape == (1, 10)


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_slices_give_the_answer_of_the_whole_batch(tiny_model: Path, images: int) -> None:
    whole = vimrt.Engine(tiny_model, device="cpu", threads=1)
    limit = whole.program(images)["peak"]
    sliced = vimrt.Engine(tiny_model, device="cpu", threads=1, max_memory=limit)
    names = ["logits", "features", "tokens", "layers.0.hidden"]
    limit_of_all = sliced.program(images, outputs=names)["peak"]
    sliced_all = vimrt.Engine(tiny_model, device="cpu", threads=1, max_memory=limit_of_all)
    batch = pixels(11)
    np.testing.assert_allclose(sliced.run(batch), whole.run(batch), rtol=1e-6, atol=1e-6)
    assert 0 < sliced.memory["activations"] <= limit
    found, expected = sliced_all.run(batch, outputs=names), whole.run(batch, outputs=names)
    for name in names:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)
    out = np.full((11, 10), np.nan, np.float32)
    np.testing.assert_array_equal(sliced.run(batch, out=out), sliced.run(batch))


def test_each_image_of_a_batch_is_by_itself(engine: vimrt.Engine) -> None:
    batch = pixels(5)
    together = engine.run(batch)
    for i in range(5):
        np.testing.assert_allclose(engine.run(batch[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-6)


def test_memory_stays_bounded_over_many_sizes(tiny_model: Path) -> None:
    engine = vimrt.Engine(tiny_model, device="cpu")
    for side in range(8, 88, 4):  # more sizes than programs are kept
        engine.run(pixels(1, side, side))
    once = engine.memory
    for side in range(8, 88, 4):
        engine.run(pixels(1, side, side))
    assert engine.memory == once
    np.testing.assert_array_equal(engine.run(pixels()), vimrt.Engine(tiny_model, device="cpu").run(pixels()))


# The file


def test_a_file_may_go_once_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(tiny_model, tmp_path / "copy.vimrt"))
    expected = vimrt.Engine(copy, device="cpu").run(pixels(1, 40, 32))
    engine = vimrt.Engine(copy, device="cpu")
    copy.unlink()
    np.testing.assert_array_equal(engine.run(pixels(1, 40, 32)), expected)
    Path(shutil.copy(tiny_model, tmp_path / "other.vimrt")).replace(copy)
    np.testing.assert_array_equal(engine.run(pixels(1, 40, 32)), expected)


def test_paths_may_hold_any_bytes(tiny_model: Path, tmp_path: Path) -> None:
    for name in (b"with space.vimrt", "üñí.vimrt".encode(), b"\xff\xfe.vimrt"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        shutil.copy(tiny_model, path)
        engine = vimrt.Engine(path, device="cpu")
        assert Path(engine.path) == path
        path.write_bytes(b"damaged")
        with pytest.raises(vimrt.FormatError, match="cut short"):
            vimrt.Engine(path, device="cpu")
        with pytest.raises(vimrt.FormatError):
            vimrt.Engine(os.fsencode(path), device="cpu")


def test_engines_of_one_file_are_independent(tiny_model: Path) -> None:
    one, two = vimrt.Engine(tiny_model, device="cpu"), vimrt.Engine(tiny_model, device="cpu")
    expected = one.run(pixels())
    del one
    np.testing.assert_array_equal(two.run(pixels()), expected)

"""Arrays in and out by DLPack and __cuda_array_interface__, and runs not waited for, where no GPU is needed."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vimrt
from vimrt import _vimrt
from vimrt.device_array import DeviceArray, current_stream, is_on_device, stream_handle, take

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> vimrt.Engine:
    return vimrt.Engine(tiny_model, device="cpu")


def pixels(batch: int = 1, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 28, 28), dtype=np.float32)


def device_array(engine: vimrt.Engine, batch: int = 2) -> DeviceArray:
    """A result as a DeviceArray, on the CPU, where NumPy can read it."""
    pending = engine._engine.start(_vimrt.Tensor.from_floats(pixels(batch)), [], 0)
    return DeviceArray(pending, pending.tensors[0])


# DLPack


@pytest.mark.parametrize("options", [{}, {"max_version": (1, 0)}, {"max_version": (2, 1)}, {"max_version": (0, 8)}])
def test_results_go_out_by_either_kind_of_capsule(engine: vimrt.Engine, options: dict[str, Any]) -> None:
    result = device_array(engine)
    capsule = result.__dlpack__(**options)
    versioned = options.get("max_version", (0, 0))[0] >= 1
    assert f'"{"dltensor_versioned" if versioned else "dltensor"}"' in repr(capsule)
    tensor = _vimrt.Tensor.from_dlpack(capsule)
    assert '"used_dltensor' in repr(capsule)
    np.testing.assert_array_equal(tensor.to_array(), engine.run(pixels(2)))
    with pytest.raises(vimrt.InvalidArgument, match="taken before"):
        _vimrt.Tensor.from_dlpack(capsule)


def test_other_libraries_share_the_memory_and_keep_it(engine: vimrt.Engine) -> None:
    expected = engine.run(pixels(2))
    result = device_array(engine)
    array = np.from_dlpack(result)
    assert array.__array_interface__["data"][0] == result._tensor.pointer
    torch = pytest.importorskip("torch")
    tensor = torch.from_dlpack(result)
    assert tensor.data_ptr() == result._tensor.pointer
    del result
    gc.collect()
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_capsule_that_nobody_takes_frees_its_tensor(engine: vimrt.Engine) -> None:
    for _ in range(1000):
        device_array(engine, 1).__dlpack__(max_version=(1, 0))


def test_what_cannot_be_handed_over_is_a_buffer_error(engine: vimrt.Engine) -> None:
    result = device_array(engine)
    with pytest.raises(BufferError, match="without a copy"):
        result.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="another device"):
        result.__dlpack__(dl_device=(2, 0))
    assert not hasattr(result, "__cuda_array_interface__")


def test_a_result_tells_what_it_is(engine: vimrt.Engine) -> None:
    result = device_array(engine)
    assert (result.shape, result.ndim, result.dtype, result.nbytes) == ((2, 10), 2, np.float32, 80)
    assert (result.device, result.__dlpack_device__()) == ("cpu", (1, 0))
    assert repr(result) == "DeviceArray(shape=(2, 10), dtype=float32, device='cpu')"
    np.testing.assert_array_equal(np.asarray(result), engine.run(pixels(2)))
    np.testing.assert_array_equal(result.numpy(), engine.run(pixels(2)))


@pytest.mark.parametrize("versioned", [False, True])
def test_tensors_come_in_without_a_copy(versioned: bool) -> None:
    array = pixels()
    options: dict[str, Any] = {"max_version": (1, 0)} if versioned else {}
    try:
        capsule = array.__dlpack__(**options)
    except TypeError:
        pytest.skip("this NumPy has no versioned capsules")
    tensor = _vimrt.Tensor.from_dlpack(capsule)
    assert tensor.pointer == array.__array_interface__["data"][0]
    assert (tensor.shape, tensor.dtype, tensor.device) == (array.shape, "float32", "cpu")
    expected = array.copy()
    del array, capsule
    gc.collect()
    np.testing.assert_array_equal(tensor.to_array(), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 3, 4, 4), np.float64), "dtype is float64"),
        (np.zeros((1, 3, 4, 4), np.float16), "dtype is float16"),
        (np.zeros((1, 3, 4, 4), np.int32), "dtype is int32"),
        (np.zeros((1, 3, 4, 8), np.float32)[..., ::2], "not dense"),
        (np.zeros((4, 4, 3, 2), np.float32).T, "not dense"),
        (np.zeros((1,) * 9, np.float32), "at most 8"),
    ],
)
def test_tensors_that_vimrt_cannot_read_are_refused_and_left_alone(array: Any, message: str) -> None:
    capsule = array.__dlpack__()
    with pytest.raises(vimrt.InvalidArgument, match=message):
        _vimrt.Tensor.from_dlpack(capsule)
    assert '"dltensor"' in repr(capsule)


def test_axes_of_one_element_may_have_any_stride() -> None:
    array = np.zeros((4, 1, 5), np.float32).transpose(1, 0, 2)
    assert _vimrt.Tensor.from_dlpack(array.__dlpack__()).shape == (1, 4, 5)


def test_read_only_memory_is_no_out() -> None:
    frozen = np.zeros((2, 10), np.float32)
    frozen.flags.writeable = False
    try:
        capsule = frozen.__dlpack__(max_version=(1, 0))
    except (TypeError, BufferError):
        pytest.skip("this NumPy has no versioned capsules")
    with pytest.raises(vimrt.InvalidArgument, match="read-only"):
        _vimrt.Tensor.from_dlpack(capsule, True)


# __cuda_array_interface__


class Interface:
    """An array that says it is in CUDA memory."""

    def __init__(self, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (1, 3, 28, 28), "typestr": "<f4", "data": (4096, False), "strides": None, "version": 3,
        } | changes  # fmt: skip


def test_arrays_on_a_gpu_are_refused_by_an_engine_on_the_cpu(engine: vimrt.Engine) -> None:
    assert is_on_device(Interface())
    with pytest.raises(vimrt.InvalidArgument, match=r"another device \(CUDA\).*takes host memory"):
        engine.run(Interface())
    with pytest.raises(vimrt.InvalidArgument, match="another device"):
        engine.run(pixels(), out=Interface(shape=(1, 10)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": "<f8"}, "dtype is float64"),
        ({"typestr": ">f4"}, "dtype is >f4"),
        ({"typestr": "nonsense"}, "cannot be read"),
        ({"data": None}, "cannot be read"),
        ({"shape": ("x",)}, "cannot be read"),
        ({"strides": (3 * 28 * 28 * 4, 28 * 28 * 4, 4, 28 * 4)}, "not dense"),
        ({"mask": object()}, "not dense"),
        ({"shape": (-1, 3, 28, 28)}, "negative"),
    ],
)
def test_interfaces_that_vimrt_cannot_read_are_refused(
    engine: vimrt.Engine, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(vimrt.InvalidArgument, match=message):
        take(Interface(**changes), 1, engine._engine)


def test_a_dense_interface_is_taken_as_it_is(engine: vimrt.Engine) -> None:
    strides = (3 * 28 * 28 * 4, 28 * 28 * 4, 28 * 4, 4)
    for interface in (Interface(), Interface(strides=strides), Interface(shape=(1, 28, 28, 3), typestr="|u1")):
        tensor = take(interface, 1, engine._engine)
        assert (tensor.pointer, tensor.device) == (4096, "cuda:0")
    with pytest.raises(vimrt.InvalidArgument, match="read-only"):
        take(Interface(data=(4096, True)), 1, engine._engine, writable=True)


# Streams


def test_streams_are_handles_or_objects() -> None:
    class TorchStream:
        cuda_stream = 4711

    class CupyStream:
        ptr = 0

    class CoreStream:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 42

    assert [stream_handle(s) for s in (7, 0, np.int64(3), TorchStream(), CupyStream(), CoreStream())] == [
        7, 1, 3, 4711, 1, 42,
    ]  # fmt: skip
    for bad in (-1, "1", 1.0, object(), 2**64):
        with pytest.raises(vimrt.InvalidArgument, match="stream is"):
            stream_handle(bad)


def test_the_default_stream_is_the_producers() -> None:
    assert current_stream(Interface()) == 1
    assert current_stream(Interface(stream=77)) == 77


# Runs that are not waited for


def test_a_run_that_is_not_waited_for_gives_the_same(engine: vimrt.Engine) -> None:
    batch = pixels(3)
    pending = engine.run(batch, wait=False)
    assert isinstance(pending, vimrt.Pending)
    batch[...] = np.nan
    pending.wait()
    assert pending.done()
    logits = pending.result()
    np.testing.assert_array_equal(logits, engine.run(pixels(3)))
    named = engine.run(pixels(3), ["features", "logits"], wait=False).result()
    assert list(named) == ["features", "logits"]
    np.testing.assert_array_equal(named["logits"], logits)


def test_photographs_need_not_be_waited_for_either(engine: vimrt.Engine) -> None:
    photographs = list(np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))
    np.testing.assert_array_equal(engine.run(photographs, wait=False).result(), engine.run(photographs))


def test_pending_results_outlive_their_engine(tiny_model: Path, engine: vimrt.Engine) -> None:
    pending = vimrt.Engine(tiny_model, device="cpu").run(pixels(), wait=False)
    gc.collect()
    np.testing.assert_array_equal(pending.result(), engine.run(pixels()))


def test_errors_come_at_once_where_they_can(engine: vimrt.Engine) -> None:
    with pytest.raises(vimrt.InvalidArgument, match=r"\(B, 3, H, W\)"):
        engine.run(np.zeros((1, 4, 28, 28), np.float32), wait=False)
    with pytest.raises(vimrt.InvalidArgument, match="wait=True"):
        engine.run(pixels(), out=np.zeros((1, 10), np.float32), wait=False)  # type: ignore[call-overload]


# The choice of the device


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_without_a_gpu_the_cpu_is_taken_in_silence(tiny_model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = vimrt.Engine(tiny_model)
    assert engine.device == "cpu"

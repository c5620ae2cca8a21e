"""The CUDA backend against the PyTorch reference: every variant, in every storage. Skipped where there is no GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_parity import VARIANTS, exported, relative_error, small

import vimrt
from vimrt.export.config import VIM_BASE, VIM_SMALL, VIM_TINY, VimConfig
from vimrt.export.reference import VisionMamba, random_images


def reason_to_skip() -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if not (Path(vimrt.__file__).parent / "libvimrt_cuda.so").exists():
        return "this build of vimrt has no CUDA backend"
    return None


pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))

#: Relative L2 error of the logits: fp32 against the fp32 reference; fp16 what the authors' autocast costs.
FP32, BF16 = 1e-5, 1e-2
FP16 = {
    "tiny-224": 1.09e-3,
    "small-224": 1.12e-3,
    "base-224": 1.07e-3,
    "tiny-stride8": 1.24e-3,
    "small-stride8": 1.18e-3,
    "tiny-512": 1.09e-3,
    "tiny-1248": 1.17e-3,
    "tiny-rectangular": 1.1e-3,
    "tiny-no-division": 1.23e-3,
    "tiny-v1": 1.34e-3,
    "tiny-forward-only": 0.94e-3,
}


def on_gpu(engine: vimrt.Engine, dtype: str, **options: int) -> vimrt.Engine:
    return vimrt.Engine(engine.path, device="cuda", dtype=dtype, **options)


def expected(reference: VisionMamba, images: torch.Tensor) -> torch.Tensor:
    """The reference's logits, in fp32 throughout, computed on the GPU where that is no less exact."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        logits: torch.Tensor = reference.cuda()(images.cuda())
    return logits.cpu()


def report(name: str, errors: dict[str, float]) -> None:
    """Prints a row of the parity table, to the file that VIMRT_PARITY_TABLE names where it is set."""
    line = f"{name:24s} " + "  ".join(f"{dtype} {error:.2e}" for dtype, error in errors.items())
    print(line)
    if path := os.environ.get("VIMRT_PARITY_TABLE"):
        with Path(path).open("a") as table:
            table.write(line + "\n")


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_the_references(name: str, tmp_path: Path) -> None:
    config, (height, width), batch = VARIANTS[name]
    seed = sorted(VARIANTS).index(name)
    engine, reference = exported(config, seed, tmp_path)
    images = random_images(batch, height, width, seed)
    truth = expected(reference, images)
    errors = {dtype: relative_error(on_gpu(engine, dtype).run(images), truth) for dtype in ("fp32", "fp16", "bf16")}
    report(name, errors)
    assert errors["fp32"] <= FP32
    assert errors["fp16"] <= FP16.get(name, 1.5e-3)
    assert errors["bf16"] <= BF16


@pytest.mark.parametrize("batch", [1, 3, 128])
@pytest.mark.parametrize("config", [VIM_TINY, VIM_SMALL, VIM_BASE], ids=["tiny", "small", "base"])
def test_batches_are_right(config: VimConfig, batch: int, tmp_path: Path) -> None:
    engine, reference = exported(config, batch, tmp_path)
    images = random_images(batch, 224, 224, batch)
    truth = expected(reference, images)
    errors = {dtype: relative_error(on_gpu(engine, dtype).run(images), truth) for dtype in ("fp32", "fp16", "bf16")}
    report(f"D={config.d_model} batch {batch}", errors)
    assert errors["fp32"] <= FP32
    assert errors["fp16"] <= 1.12e-3
    assert errors["bf16"] <= BF16


@pytest.mark.parametrize(
    "name", ["token-ends", "pool-mean", "layer-scale", "rope", "v1", "forward-only-mean", "odd-inner"]
)
def test_values_inside_are_the_references(name: str, tmp_path: Path) -> None:
    """Also the values that fusion otherwise swallows, all at once and one by one."""
    config, (height, width), batch = VARIANTS[name]
    engine, reference = exported(config, 7, tmp_path)
    images = random_images(batch, height, width, 7)
    truth = reference.intermediates(images)
    gpu = on_gpu(engine, "fp32")
    together = gpu.run(images, outputs=list(truth))
    for value, tensor in truth.items():
        assert relative_error(together[value], tensor) <= FP32, value
    for value in ["layers.0.hidden", "layers.1.residual", "tokens"]:
        assert relative_error(gpu.run(images, outputs=[value])[value], truth[value]) <= FP32, value


def test_steps_that_fusion_skips_are_right_by_themselves(tmp_path: Path) -> None:
    for name in ("token-ends", "rope-320x192", "layer-scale", "v1"):
        config, (height, width), batch = VARIANTS[name]
        engine, _ = exported(config, 11, tmp_path)
        images = random_images(batch, height, width, 11).numpy()
        gpu = on_gpu(engine, "fp32")
        names = [value for node in engine.info["nodes"] for value in node["outputs"]]
        np.testing.assert_allclose(gpu.run(images, outputs=names)["logits"], gpu.run(images), rtol=1e-4, atol=1e-5)


def test_runs_repeat_bit_by_bit(tmp_path: Path) -> None:
    engine, _ = exported(VIM_TINY, 13, tmp_path)
    for size, batch in ((224, 3), (640, 1)):
        images = random_images(batch, size, size, 13).numpy()
        gpu = on_gpu(engine, "fp16")
        first = gpu.run(images)
        assert all(np.array_equal(gpu.run(images), first) for _ in range(20))


def test_photographs_give_what_their_pixels_give(tmp_path: Path) -> None:
    engine, _ = exported(small(), 19, tmp_path)
    photographs = list(np.random.default_rng(19).integers(0, 256, (3, 180, 240, 3), dtype=np.uint8))
    gpu = on_gpu(engine, "fp32")
    np.testing.assert_allclose(gpu.run(photographs), gpu.run(gpu.preprocess(photographs)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gpu.run(photographs), engine.run(photographs), rtol=1e-3, atol=1e-4)


def test_a_batch_over_the_limit_runs_in_slices(tmp_path: Path) -> None:
    engine, _ = exported(small(), 23, tmp_path)
    images = random_images(7, 224, 224, 23).numpy()
    whole = on_gpu(engine, "fp32")
    logits = whole.run(images)
    limit = whole.memory["activations"] // 2
    sliced = on_gpu(engine, "fp32", max_memory=limit)
    np.testing.assert_allclose(sliced.run(images), logits, rtol=1e-4, atol=1e-5)
    assert 0 < sliced.memory["activations"] <= limit


def test_sizes_take_turns(tmp_path: Path) -> None:
    """Programs of several sizes share the arena; each still gives what it gives alone."""
    engine, _ = exported(small(), 29, tmp_path)
    sizes = [(1, 224, 224), (4, 224, 224), (2, 96, 400), (1, 640, 640)]
    images = [random_images(batch, height, width, 29).numpy() for batch, height, width in sizes]
    alone = [on_gpu(engine, "fp16").run(batch) for batch in images]
    gpu = on_gpu(engine, "fp16")
    for _ in range(3):
        for batch, logits in zip(images, alone, strict=True):
            assert np.array_equal(gpu.run(batch), logits)


def test_threads_share_an_engine(tmp_path: Path) -> None:
    engine, _ = exported(small(), 31, tmp_path)
    gpu = on_gpu(engine, "fp16")
    images = [random_images(1 + seed % 3, 224, 224, seed).numpy() for seed in range(6)]
    alone = [gpu.run(batch) for batch in images]

    def run(turn: int) -> bool:
        return bool(np.array_equal(gpu.run(images[turn % 6]), alone[turn % 6]))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(run, range(120)))


def test_memory_is_the_plans(tmp_path: Path) -> None:
    engine, _ = exported(VIM_TINY, 37, tmp_path)
    gpu = on_gpu(engine, "fp16")
    images: npt.NDArray[np.float32] = random_images(2, 512, 512, 37).numpy()
    gpu.run(images)
    plan = gpu.program(2, 512)
    assert plan["peak"] == plan["lower_bound"]
    staged = images.nbytes + 2 * 1000 * 4
    assert plan["peak"] + staged <= gpu.memory["activations"] <= plan["peak"] + staged + 1024


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    engine, _ = exported(small(), 41, tmp_path)
    with pytest.raises(vimrt.DeviceError, match=r"cuda:77.*this machine has"):
        vimrt.Engine(engine.path, device="cuda:77")


def test_a_full_device_says_how_much_is_missing(tmp_path: Path) -> None:
    engine, _ = exported(small(), 43, tmp_path)
    gpu = on_gpu(engine, "fp32")
    free, _ = torch.cuda.mem_get_info()
    room = 32 << 20
    occupied = torch.empty(free - room, dtype=torch.uint8, device="cuda")
    assert gpu.program(32, 512)["peak"] > room
    with pytest.raises(vimrt.OutOfMemory, match=r"refused \d+ bytes: \d+ of \d+ are free"):
        gpu.run(random_images(32, 512, 512, 43).numpy())
    del occupied
    torch.cuda.empty_cache()
    assert np.isfinite(gpu.run(random_images(32, 512, 512, 43).numpy())).all()

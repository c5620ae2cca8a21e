"""The CUDA backend against the PyTorch reference: every variant, in every storage. Skipped where there is no GPU."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from autocast import Autocast
from graphs import node, run_tokens, tokens_engine
from test_fashion_mnist import DATA, EXAMPLE, as_photographs, exported_example, read
from test_parity import VARIANTS, check_values_inside, exported, relative_error, small

import vimrt
from vimrt.bench.vim_torch import SIZES
from vimrt.export.config import VIM_BASE, VIM_SMALL, VIM_TINY, VimConfig
from vimrt.export.reference import VisionMamba, random_images


def reason_to_skip() -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    if not (Path(vimrt.__file__).parent / "libvimrt_cuda.so").exists():
        return "this build of vimrt has no CUDA backend"
    return None


pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=str(reason_to_skip()))

#: Relative L2 error of the logits against the fp32 reference, fp16 what the authors' autocast was found to cost; and
#: what it costs on the same weights and images, within the spread of single draws. Checkpoints that a mean is taken of.
FP32, BF16, SPREAD, DRAWS = 1e-5, 1e-2, 1.15, 8
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


def errors_on_gpu(engine: vimrt.Engine, images: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Of the engine's file in every dtype."""
    return {dtype: relative_error(on_gpu(engine, dtype).run(images), truth) for dtype in ("fp32", "fp16", "bf16")}


def autocast_error(reference: VisionMamba, rounding: torch.dtype, images: torch.Tensor, truth: torch.Tensor) -> float:
    """The error of a forward pass that rounds as the authors' autocast does."""
    with torch.inference_mode():
        return relative_error(Autocast(reference, rounding)(images.cuda()).cpu().numpy(), truth)


def report(name: str, errors: dict[str, float]) -> None:
    """Prints a row of the parity table, to the file that VIMRT_PARITY_TABLE names where it is set."""
    line = f"{name:24s} " + "  ".join(f"{dtype} {error:.2e}" for dtype, error in errors.items())
    print(line)
    if path := os.environ.get("VIMRT_PARITY_TABLE"):
        with Path(path).open("a") as table:
            table.write(line + "\n")


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_the_references(name: str, tmp_path: Path) -> None:
    """With a limit of its own, a variant's mean of some checkpoints: those of one spread by a tenth and more."""
    config, (height, width), batch = VARIANTS[name]
    draws = []
    for draw in range(DRAWS if name in FP16 else 1):
        seed = sorted(VARIANTS).index(name) + 1000 * draw
        engine, reference = exported(config, seed, tmp_path)
        images = random_images(batch, height, width, seed)
        truth = expected(reference, images)
        errors = errors_on_gpu(engine, images, truth)
        if name in FP16:
            for dtype, rounding in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
                errors[f"autocast {dtype}"] = autocast_error(reference, rounding, images, truth)
        draws.append(errors)
    means = {key: statistics.mean(errors[key] for errors in draws) for key in draws[0]}
    report(name, means)
    limits = {"fp32": FP32, "fp16": FP16.get(name, 1.5e-3), "bf16": BF16}
    for dtype, limit in limits.items():
        found = [errors[dtype] for errors in draws]
        assert means[dtype] <= min(limit, means.get(f"autocast {dtype}", limit)), (dtype, found)
        assert dtype == "bf16" or max(found) <= SPREAD * limit, (dtype, found)


@pytest.mark.parametrize(
    ("size", "batch"),
    [*((size, batch) for size in SIZES for batch in (1, 3, 128)), *(("tiny", batch) for batch in (12, 28, 44))],
)
def test_batches_are_right(size: str, batch: int, tmp_path: Path) -> None:
    """On 132 multiprocessors, scans of 12 images are by strips, of 28 in two branches, of 44 with one block on each."""
    config = SIZES[size]
    engine, reference = exported(config, batch, tmp_path)
    images = random_images(batch, 224, 224, batch)
    truth = expected(reference, images)
    errors = errors_on_gpu(engine, images, truth)
    limit = FP16["small-224"]
    if errors["fp16"] > limit:  # of one image, by chance
        errors["autocast fp16"] = autocast_error(reference, torch.float16, images, truth)
        limit = SPREAD * errors["autocast fp16"]
    report(f"D={config.d_model} batch {batch}", errors)
    assert errors["fp32"] <= FP32
    assert errors["fp16"] <= limit
    assert errors["bf16"] <= BF16


def test_eight_large_images_are_right(tmp_path: Path) -> None:
    """Which 128 to 160 multiprocessors scan by trios in 16 bits."""
    engine, reference = exported(VIM_TINY, 8, tmp_path)
    images = random_images(8, 512, 512, 8)
    truth = expected(reference, images)
    errors = errors_on_gpu(engine, images, truth)
    report("D=192 512x512 batch 8", errors)
    assert errors["fp32"] <= FP32
    assert errors["fp16"] <= SPREAD * FP16["tiny-512"]
    assert errors["bf16"] <= BF16


@pytest.mark.parametrize(
    "name", ["token-ends", "pool-mean", "layer-scale", "rope", "v1", "forward-only-mean", "odd-inner"]
)
def test_values_inside_are_the_references(name: str, tmp_path: Path) -> None:
    """Also the values that fusion otherwise swallows, all at once and one by one."""
    config, (height, width), batch = VARIANTS[name]
    engine, reference = exported(config, 7, tmp_path)
    images = random_images(batch, height, width, 7)
    alone = ["layers.0.hidden", "layers.1.residual", "tokens"]
    check_values_inside(on_gpu(engine, "fp32"), reference, images, alone, FP32)


def test_steps_that_fusion_skips_are_right_by_themselves(tmp_path: Path) -> None:
    for name in ("token-ends", "rope-320x192", "layer-scale", "v1"):
        config, (height, width), batch = VARIANTS[name]
        engine, _ = exported(config, 11, tmp_path)
        images = random_images(batch, height, width, 11).numpy()
        gpu = on_gpu(engine, "fp32")
        names = [value for node in engine.info["nodes"] for value in node["outputs"]]
        np.testing.assert_allclose(gpu.run(images, outputs=names)["logits"], gpu.run(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_few_tokens_take_one_kernel_between_scans(batch: int, tmp_path: Path) -> None:
    engine, _ = exported(VIM_TINY, 1, tmp_path)
    half, full = on_gpu(engine, "fp16"), on_gpu(engine, "fp32")
    if torch.cuda.get_device_capability() >= (9, 0):
        names = [step["name"].split()[0] for step in half.program(batch, (224, 224))["steps"]]
        assert names.count("linear+norm+linear+causal_conv1d+x_proj") == 23
        assert names.count("norm+linear+causal_conv1d+x_proj") == 1 and names.count("scan+merge") == 24
    # Where normed is asked for, that block's steps are apart.
    outputs = ["layers.4.normed", "layers.7.residual", "layers.9.z", "logits"]
    images = random_images(batch, 224, 224, 1).numpy()
    found, truth = half.run(images, outputs=outputs), full.run(images, outputs=outputs)
    assert all(relative_error(found[name], torch.from_numpy(truth[name])) <= 2e-3 for name in outputs)
    np.testing.assert_array_equal(half.run(images, outputs=outputs)["logits"], found["logits"])


@pytest.mark.parametrize(("config", "batch"), [(VIM_TINY, 4), (VIM_TINY, 32), (VIM_SMALL, 2), (VIM_BASE, 1)])
def test_many_tokens_take_one_kernel_in_front_of_a_scan(config: VimConfig, batch: int, tmp_path: Path) -> None:
    """Which for four images of Ti takes in the out_proj of the block before, where there is one."""
    engine, _ = exported(config, 1, tmp_path)
    half, full = on_gpu(engine, "fp16"), on_gpu(engine, "fp32")
    if torch.cuda.get_device_capability() == (9, 0):
        names = [step["name"].split()[0] for step in half.program(batch, (224, 224))["steps"]]
        fronts = {name: names.count(name) for name in names if name.endswith("norm+linear+causal_conv1d+x_proj")}
        taken_in = 23 if (config, batch) == (VIM_TINY, 4) else 0
        assert fronts.get("linear+norm+linear+causal_conv1d+x_proj", 0) == taken_in
        assert fronts["norm+linear+causal_conv1d+x_proj"] == 24 - taken_in and names.count("scan+merge") == 24
    outputs = ["layers.4.normed", "layers.7.residual", "layers.9.z", "logits"]
    images = random_images(batch, 224, 224, 2).numpy()
    found, truth = half.run(images, outputs=outputs), full.run(images, outputs=outputs)
    assert all(relative_error(found[name], torch.from_numpy(truth[name])) <= 2e-3 for name in outputs)


@pytest.mark.parametrize(
    ("batch", "size", "branches"),
    [(1, 1248, [1]), (2, 768, [2]), (3, 768, [2]), (6, 768, [3]), (13, 768, [1, 2]), (16, 1248, [1, 1])],
)
def test_a_batch_runs_in_rounds_and_branches(batch: int, size: int, branches: list[int], tmp_path: Path) -> None:
    """Of large images, some may have other scans than the rest: alone, captured, in slices, from the host."""
    config = dataclasses.replace(VIM_TINY, depth=2)
    engine, reference = exported(config, batch, tmp_path)
    images = random_images(batch, size, size, batch)
    truth = expected(reference, images)
    gpu = on_gpu(engine, "fp16")
    plan = gpu.program(batch, size)
    properties = torch.cuda.get_device_properties(0)
    if (properties.major, properties.minor, properties.multi_processor_count) == (9, 0, 132):
        parts = [(step["round"], step["branch"]) for step in plan["steps"]]
        assert [part[0] for part in parts] == sorted(part[0] for part in parts)
        for i, count in enumerate(branches):
            own = [branch for at, branch in parts if at == i]
            assert own[:count] == sorted(set(own)) == list(range(count))  # in turn
    logits = gpu.run(images.numpy())
    assert relative_error(logits, truth) <= 1.5e-3
    assert max(relative_error(logits[i], truth[i]) for i in range(batch)) <= 2e-3
    assert plan["peak"] <= gpu.memory["activations"] <= plan["peak"] + images.nbytes + logits.nbytes + 4096
    source, out = images.cuda(), torch.empty(logits.shape, device="cuda")
    for _ in range(20):
        np.testing.assert_array_equal(torch.from_dlpack(gpu.run(source)).cpu().numpy(), logits)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu.run(source, out=out)
        fresh = torch.from_dlpack(gpu.run(source))
    source.mul_(2)
    np.testing.assert_array_equal(gpu.run(images.numpy()), logits)
    doubled = gpu.run(source.cpu().numpy())
    graph.replay()
    for captured in (out, fresh):
        np.testing.assert_array_equal(captured.cpu().numpy(), doubled)
    inside = gpu.run(images.numpy(), outputs=["layers.1.residual", "logits"])
    np.testing.assert_array_equal(inside["logits"], logits)
    assert inside["layers.1.residual"].shape == (batch, (size // 16) ** 2 + 1, config.d_model)
    one = gpu.program(1, size)["peak"] + images[0].nbytes + (1 << 20)
    one_by_one = on_gpu(engine, "fp16", max_memory=one).run(images.numpy())
    assert relative_error(one_by_one, truth) <= 1.5e-3


@pytest.mark.parametrize("depth", [96, 384, 448])
@pytest.mark.parametrize("tokens", [1, 50])
def test_products_in_front_of_a_scan_may_have_any_depth(depth: int, tokens: int, tmp_path: Path) -> None:
    width, inner = 192, 384
    random = np.random.default_rng(depth + tokens)
    tensors = {
        "narrow": random.normal(0, 0.07, (depth, width)),
        "out": random.normal(0, 0.05, (width, depth)),
        "norm": random.normal(1, 0.1, width),
        "in": random.normal(0, 0.07, (2 * inner, width)),
    }
    roles = {}
    for end, a_log, skip in (("", "A_log", "D"), ("_b", "A_b_log", "D_b")):
        scan = {
            f"conv1d{end}.weight": random.normal(0, 0.5, (inner, 1, 4)),
            f"conv1d{end}.bias": random.normal(0, 0.1, inner),
            f"x_proj{end}.weight": random.normal(0, 0.05, (12 + 32, inner)),
            f"dt_proj{end}.weight": random.normal(0, 0.2, (inner, 12)),
            f"dt_proj{end}.bias": random.normal(-3, 0.5, inner),
            a_log: np.log(np.tile(np.arange(1.0, 17), (inner, 1))),
            skip: random.normal(1, 0.1, inner),
        }
        tensors |= scan
        roles |= {role: role for role in scan}
    nodes = [
        node("linear", ["x"], ["narrowed"], {"weight": "narrow"}),
        node("linear", ["narrowed"], ["hidden"], {"weight": "out"}),
        node("add_norm", ["hidden", "x"], ["normed", "residual"], {"weight": "norm"}, norm="rms", eps=1e-5),
        node("linear", ["normed"], ["xz"], {"weight": "in"}),
        node("split", ["xz"], ["inside", "z"], sizes=[inner, inner]),
        node("bidirectional_scan", ["inside"], ["forward", "backward"], roles, backward="own"),
        node("gated_merge", ["forward", "backward", "z"], ["y"], merge="mean"),
    ]
    outputs = ["y", "residual", "z"]
    engine = tokens_engine(tmp_path / "g.vimrt", width, nodes, tensors, outputs)
    x = random.normal(size=(2, tokens, width)).astype(np.float32)
    truth = run_tokens(engine, x, outputs)
    gpu = on_gpu(engine, "fp16")
    found = run_tokens(gpu, x, outputs)
    if torch.cuda.get_device_capability() >= (9, 0):
        names = [step["name"] for step in gpu.program(2, (tokens, width // 3), outputs)["steps"]]
        assert any("linear+norm+linear" in name for name in names) == (depth == 2 * width)
    assert all(relative_error(found[name], torch.from_numpy(truth[name])) <= 3e-3 for name in outputs)


def test_runs_repeat_bit_by_bit(tmp_path: Path) -> None:
    engine, _ = exported(VIM_TINY, 13, tmp_path)
    for size, batch in ((224, 1), (224, 3), (640, 1)):
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


@pytest.mark.parametrize(
    ("config", "size", "most"),
    [(small(), 224, 3), (dataclasses.replace(VIM_TINY, depth=2), 1248, 1)],
    ids=["batches", "large"],
)
def test_threads_share_an_engine(config: VimConfig, size: int, most: int, tmp_path: Path) -> None:
    """The scan of one large image has blocks that wait for one another, and runs beside others of its kind."""
    engine, _ = exported(config, 31, tmp_path)
    gpu = on_gpu(engine, "fp16")
    images = [random_images(1 + seed % most, size, size, seed).numpy() for seed in range(6)]
    alone = [gpu.run(batch) for batch in images]

    def run(turn: int) -> bool:
        return bool(np.array_equal(gpu.run(images[turn % 6]), alone[turn % 6]))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(run, range(120 if most > 1 else 30)))


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
    with pytest.raises(vimrt.OutOfMemory, match=r"refused \d+ bytes of device memory: \d+ of \d+ are free"):
        gpu.run(random_images(32, 512, 512, 43).numpy())
    del occupied
    torch.cuda.empty_cache()
    assert np.isfinite(gpu.run(random_images(32, 512, 512, 43).numpy())).all()


# Arrays on the device, in and out


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> vimrt.Engine:
    engine, _ = exported(small(), 47, tmp_path_factory.mktemp("device"))
    return on_gpu(engine, "fp16")


class Interface:
    """A torch tensor that knows __cuda_array_interface__ alone, with the stream that it was written on."""

    def __init__(self, tensor: torch.Tensor, stream: int | None = 1) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {"version": 3, "stream": stream}


def test_tensors_go_in_and_come_out_without_a_copy(gpu: vimrt.Engine) -> None:
    images = random_images(3, 224, 224, 47)
    expected = gpu.run(images.numpy())
    result = gpu.run(images.cuda())
    assert isinstance(result, vimrt.DeviceArray)
    assert (result.device, result.shape) == ("cuda:0", expected.shape)
    tensor = torch.from_dlpack(result)
    assert tensor.is_cuda and tensor.data_ptr() == result.__cuda_array_interface__["data"][0]
    np.testing.assert_array_equal(result.numpy(), expected)
    del result
    gc.collect()
    for _ in range(20):  # what is still held is not handed out again
        gpu.run(images.cuda() * 2)
    np.testing.assert_array_equal(tensor.cpu().numpy(), expected)


def test_other_ways_in_and_out_agree(gpu: vimrt.Engine) -> None:
    images = random_images(2, 224, 224, 53)
    on_device = images.cuda()
    expected = gpu.run(images.numpy())
    torch.cuda.synchronize()
    np.testing.assert_array_equal(gpu.run(Interface(on_device)).numpy(), expected)
    np.testing.assert_array_equal(torch.as_tensor(gpu.run(on_device), device="cuda").cpu().numpy(), expected)
    out = torch.full(expected.shape, torch.nan, device="cuda")
    assert gpu.run(on_device, out=out) is out
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    out.fill_(torch.nan)
    gpu.run(images.numpy(), out=out)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    host = np.full(expected.shape, np.nan, np.float32)
    np.testing.assert_array_equal(gpu.run(on_device, out=host), expected)
    named = gpu.run(on_device, ["features", "logits"])
    assert list(named) == ["features", "logits"]
    np.testing.assert_allclose(named["logits"].numpy(), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(gpu.run(on_device, wait=False).result().numpy(), expected)


def test_runs_are_ordered_on_the_current_stream(gpu: vimrt.Engine) -> None:
    """Nothing waits on the host; the input is written, and the result read, by work of the same stream."""
    images = random_images(4, 224, 224, 59)
    expected = gpu.run(images.numpy())
    source = images.cuda()
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            late = torch.zeros_like(source)
            torch.cuda._sleep(2_000_000)
            late.copy_(source)
            logits = torch.from_dlpack(gpu.run(late)).clone()
        torch.cuda.synchronize()
        np.testing.assert_array_equal(logits.cpu().numpy(), expected)


def test_streams_may_be_named(gpu: vimrt.Engine) -> None:
    images = random_images(2, 224, 224, 61)
    expected = gpu.run(images.numpy())
    side = torch.cuda.Stream()
    for stream in (side, side.cuda_stream, 1, torch.cuda.current_stream()):
        result = gpu.run(images.cuda(), stream=stream)
        np.testing.assert_array_equal(torch.from_dlpack(result).cpu().numpy(), expected)


@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_threads_with_streams_of_their_own_keep_out_of_each_others_way(limited: bool, gpu: vimrt.Engine) -> None:
    images = [random_images(1 + seed % 3, 224, 224, seed) for seed in range(6)]
    limit = gpu.program(3, 224)["peak"] + (8 << 20) if limited else None
    engine = vimrt.Engine(gpu.path, device="cuda", dtype="fp16", max_memory=limit)
    expected = [engine.run(batch.numpy()) for batch in images]
    sources = [batch.cuda() for batch in images]
    torch.cuda.synchronize()

    def work(turn: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found = []
            for i in range(60):
                which = (turn + i) % 6
                found.append((which, torch.from_dlpack(engine.run(sources[which])).clone()))
        stream.synchronize()
        for which, logits in found:
            assert np.array_equal(logits.cpu().numpy(), expected[which])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, turn) for turn in range(4)]:
            done.result()
    if limit is not None:
        assert engine.memory["activations"] <= limit


def test_a_captured_run_shows_that_nothing_crosses_the_bus(gpu: vimrt.Engine) -> None:
    """Capture forbids copies to the host that are waited for, and any other wait."""
    batches = [random_images(2, 224, 224, seed) for seed in range(4)]
    expected = [gpu.run(batch.numpy()) for batch in batches]
    source = batches[0].cuda()
    out = torch.empty(expected[0].shape, device="cuda")
    gpu.run(source, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu.run(source, out=out)
        fresh = torch.from_dlpack(gpu.run(source))
    for batch, logits in zip(batches, expected, strict=True):
        gpu.run(batch.cuda() * 3)  # other runs leave the graph's memory alone
        source.copy_(batch)
        graph.replay()
        np.testing.assert_array_equal(out.cpu().numpy(), logits)
        np.testing.assert_array_equal(fresh.cpu().numpy(), logits)
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(vimrt.InvalidArgument, match="captured"):
        gpu.run(source, out=np.empty(expected[0].shape, np.float32))


def test_pixels_on_the_device_are_normalised_there(gpu: vimrt.Engine) -> None:
    pixels = torch.randint(0, 256, (3, 96, 160, 3), dtype=torch.uint8)
    recipe = gpu.info["preprocessing"]
    mean, std = torch.tensor(recipe["mean"]), torch.tensor(recipe["std"])
    normalised = ((pixels / 255.0 - mean) / std).permute(0, 3, 1, 2).contiguous()
    expected = torch.from_dlpack(gpu.run(normalised.cuda())).cpu()
    assert relative_error(gpu.run(pixels.cuda()).numpy(), expected) <= 2e-3


def test_tensors_that_do_not_fit_are_refused(gpu: vimrt.Engine) -> None:
    images = random_images(2, 224, 224, 67).cuda()
    for bad, message in [
        (images.half(), "dtype is float16"),
        (images.bfloat16(), "dtype is bfloat16"),
        (images.to(memory_format=torch.channels_last), "not dense"),
        (images[:, :2].contiguous(), r"\(B, 3, H, W\)"),
        (images[:0], "empty"),
        (torch.zeros(224, 224, 3, dtype=torch.uint8, device="cuda"), r"\(B, H, W, 3\)"),
        (images.clone().requires_grad_(), "cannot be read"),
        (Interface(images.double()), "dtype is float64"),
    ]:
        with pytest.raises(vimrt.InvalidArgument, match=message):
            gpu.run(bad)
    logits = (2, gpu.run(images).shape[1])
    for out in (torch.empty(logits, dtype=torch.float64, device="cuda"), torch.empty(3, logits[1], device="cuda")):
        with pytest.raises(vimrt.InvalidArgument, match="float"):
            gpu.run(images, out=out)
    lie = Interface(images)
    lie.__cuda_array_interface__ |= {"data": (torch.empty(images.shape).data_ptr(), False)}
    with pytest.raises(vimrt.InvalidArgument, match="is on cpu"):
        gpu.run(lie)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one GPU")
def test_an_engine_stays_on_its_device(gpu: vimrt.Engine) -> None:
    images = random_images(2, 224, 224, 71)
    other = vimrt.Engine(gpu.path, device="cuda:1", dtype="fp16")
    for current in (0, 1):
        with torch.cuda.device(current):
            result = other.run(images.to("cuda:1"))
            assert torch.from_dlpack(result).device == torch.device("cuda:1")
            np.testing.assert_array_equal(result.numpy(), gpu.run(images.to("cuda:0")).numpy())
            assert torch.cuda.current_device() == current
    with pytest.raises(vimrt.InvalidArgument, match=r"cuda:0.*runs on cuda:1"):
        other.run(images.to("cuda:0"))


# Runs that are not waited for


def test_runs_that_are_not_waited_for_give_the_same(gpu: vimrt.Engine) -> None:
    batches = [random_images(1 + seed % 4, 224, 224, seed).numpy() for seed in range(24)]
    expected = [gpu.run(batch) for batch in batches]
    pending = []
    for batch in batches:
        given = batch.copy()
        pending.append(gpu.run(given, wait=False))
        given[...] = np.nan
    for run, logits in zip(reversed(pending), reversed(expected), strict=True):
        np.testing.assert_array_equal(run.result(), logits)
        assert run.done()


def test_abandoned_runs_leave_the_others_alone(gpu: vimrt.Engine) -> None:
    batch = random_images(4, 224, 224, 73).numpy()
    expected = gpu.run(batch)
    for _ in range(30):
        gpu.run(batch * 2, wait=False)
        np.testing.assert_array_equal(gpu.run(batch, wait=False).result(), expected)


def test_an_engine_that_goes_waits_for_its_runs(gpu: vimrt.Engine) -> None:
    batch = random_images(16, 224, 224, 79)
    expected = gpu.run(batch.numpy())
    source = batch.cuda()
    for _ in range(5):
        engine = vimrt.Engine(gpu.path, device="cuda", dtype="fp16")
        pending, result = engine.run(batch.numpy(), wait=False), engine.run(source)
        del engine
        gc.collect()
        np.testing.assert_array_equal(pending.result(), expected)
        np.testing.assert_array_equal(result.numpy(), expected)


# Memory


def test_nothing_is_allocated_on_the_device_in_steady_state(gpu: vimrt.Engine) -> None:
    source = random_images(8, 224, 224, 83).cuda()
    host = source.cpu().numpy()
    for _ in range(3):
        gpu.run(source).numpy()
        gpu.run(host, wait=False).result()
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(300):
        gpu.run(source).numpy()
        gpu.run(host, wait=False).result()
        assert torch.cuda.mem_get_info()[0] == before


def test_reported_memory_is_the_drivers(tmp_path: Path) -> None:
    engine, _ = exported(VIM_SMALL, 89, tmp_path)
    source = random_images(64, 512, 512, 89).cuda()

    def used() -> tuple[int, int]:
        """Bytes that the driver lent for an engine and a run, and bytes that the engine reports."""
        out = torch.empty(64, 1000, device="cuda")
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        gpu = on_gpu(engine, "fp16")
        gpu.run(source, out=out)
        torch.cuda.synchronize()
        return before - torch.cuda.mem_get_info()[0], sum(gpu.memory.values())

    used()  # code and tables of the libraries are loaded by then
    gc.collect()
    lent, reported = used()
    assert abs(lent - reported) <= 0.02 * reported, (lent, reported)


# Libraries


def in_process(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("order", ["import torch, vimrt", "import vimrt, torch", "import vimrt"])
def test_libraries_may_be_loaded_in_any_order(order: str, gpu: vimrt.Engine) -> None:
    run = f"""
        {order}
        import numpy as np
        if "torch" in globals():
            torch.ones(4, 4, device="cuda") @ torch.ones(4, 4, device="cuda")
        logits = vimrt.Engine({gpu.path!r}, device="cuda").run(np.zeros((1, 3, 224, 224), np.float32))
        print(np.isfinite(logits).all())
    """
    assert in_process(run).strip() == "True"


@pytest.mark.parametrize(
    "damaged", ["libvimrt_cuda.so", f"libcublasLt.so.{(torch.version.cuda or '13').split('.')[0]}"]
)
def test_an_automatic_choice_of_the_cpu_warns_once(damaged: str, gpu: vimrt.Engine, tmp_path: Path) -> None:
    (tmp_path / damaged).touch()
    variable = "VIMRT_BACKEND_PATH" if "vimrt" in damaged else "VIMRT_CUBLASLT_PATH"
    script = f"""
        import warnings, vimrt
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            devices = [vimrt.Engine({gpu.path!r}).device for _ in range(3)]
        [warning] = [w for w in caught if w.category is vimrt.DeviceWarning]
        print(devices, warning.message)
        try:
            vimrt.Engine({gpu.path!r}, device="cuda")
        except vimrt.DeviceError as error:
            print(error)
    """
    printed = in_process(script, **{variable: str(tmp_path)}).splitlines()
    assert printed[0].startswith("['cpu', 'cpu', 'cpu'] the CPU is used")
    assert all(f"{damaged} cannot be loaded" in line for line in printed)


# Failures


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("wait", [False, True])
def test_a_failure_of_the_device_is_named_and_final(one_by_one: bool, wait: bool, gpu: vimrt.Engine) -> None:
    # An array that claims 12 GB of memory and has 2 MB, which the first step reads: in slices, so that no memory of the
    # process's own could lie behind it all the way.
    script = f"""
        import numpy as np, torch, vimrt, warnings

        engine = vimrt.Engine({gpu.path!r}, device="cuda", dtype="fp16", max_memory=1 << 30)
        good = np.zeros((1, 3, 224, 224), np.float32)
        assert np.isfinite(engine.run(good)).all()
        memory = torch.zeros(1 << 19, device="cuda")
        torch.cuda.synchronize()

        class Claim:
            __cuda_array_interface__ = memory.__cuda_array_interface__ | {{
                "shape": (20000, 3, 224, 224), "strides": None, "version": 3, "stream": None,
            }}

        def run(images):
            result = engine.run(images) if {wait} else engine.run(images, wait=False).result()
            return result if isinstance(result, np.ndarray) else result.numpy()

        def error_of(call):
            try:
                call()
            except vimrt.DeviceError as error:
                return str(error)
            return "no error"

        print(error_of(lambda: run(Claim())))
        print(error_of(lambda: run(good)))
        print(error_of(lambda: run(good)))
        print(error_of(lambda: vimrt.Engine({gpu.path!r}, device="cuda")))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            other = vimrt.Engine({gpu.path!r})
            print(other.device, [w.category.__name__ for w in caught], np.isfinite(other.run(good)).all())
    """
    *errors, automatic = in_process(script, VIMRT_CUDA_SYNC=str(int(one_by_one))).splitlines()
    print(*errors, automatic, sep="\n")
    assert len(errors) == 4
    assert "(cudaErrorIllegalAddress)" in errors[0]
    assert ('step "patches ' if one_by_one else "VIMRT_CUDA_SYNC=1 names the step") in errors[0]
    for error in errors:
        assert "the device can no longer be used by this process, start it again" in error
    assert automatic == "cpu ['DeviceWarning'] True"


@pytest.mark.skipif(not DATA.is_dir(), reason="the test images are missing: apt install dataset-fashion-mnist")
def test_a_trained_model_is_as_accurate_in_fp16(tmp_path: Path) -> None:
    engine = vimrt.Engine(exported_example(tmp_path), device="cuda", dtype="fp16")
    found = engine.run(as_photographs(read("t10k-images-idx3-ubyte.gz", 16))).argmax(1)
    accuracy = float(np.mean(found == read("t10k-labels-idx1-ubyte.gz", 8)))
    print(f"accuracy on 10,000 test images, fp16: {accuracy:.2%}")
    assert len(found) == 10_000
    assert abs(accuracy - json.loads((EXAMPLE / "metrics.json").read_text())["accuracy"]) <= 0.0005

"""One engine, many threads: right results, whatever else runs, and clear words after fork()."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vimrt

FloatArray = npt.NDArray[np.float32]

#: Batch, rows and columns: more of them than an engine keeps programs for.
SIZES = [(1 + i % 3, 8 + 4 * i, 40 - i) for i in range(18)]


def pixels(size: tuple[int, int, int], seed: int = 0) -> FloatArray:
    batch, height, width = size
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width), dtype=np.float32)


def together(work: list[Callable[[], None]]) -> None:
    """Runs all at the same time, each on a thread of its own, and raises what any of them raised."""
    start = threading.Barrier(len(work))

    def begin(part: Callable[[], None]) -> None:
        start.wait(timeout=60)
        part()

    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(begin, part) for part in work]:
            done.result(timeout=300)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def expected(tiny_model: Path, threads: int) -> list[FloatArray]:
    """Logits of SIZES from an engine that nobody else uses."""
    engine = vimrt.Engine(tiny_model, device="cpu", threads=threads)
    return [engine.run(pixels(size)) for size in SIZES]


def test_eight_threads_of_one_engine_give_the_bits_of_one(
    tiny_model: Path, threads: int, expected: list[FloatArray]
) -> None:
    engine = vimrt.Engine(tiny_model, device="cpu", threads=threads)

    def work(order: int) -> Callable[[], None]:
        def run() -> None:
            for i in np.random.default_rng(order).permutation(len(SIZES) * 4) % len(SIZES):
                np.testing.assert_array_equal(engine.run(pixels(SIZES[i])), expected[i])

        return run

    together([work(order) for order in range(8)])


def test_threads_that_need_the_same_new_size_at_once_agree(
    tiny_model: Path, threads: int, expected: list[FloatArray]
) -> None:
    def work(engine: vimrt.Engine, i: int) -> Callable[[], None]:
        return lambda: np.testing.assert_array_equal(engine.run(pixels(SIZES[i])), expected[i])

    for i in range(0, len(SIZES), 3):
        together([work(vimrt.Engine(tiny_model, device="cpu", threads=threads), i)] * 8)


def test_a_memory_limit_holds_over_all_threads(tiny_model: Path) -> None:
    batch = pixels((6, 28, 28))
    free = vimrt.Engine(tiny_model, device="cpu", threads=1)
    limit = 2 * free.program(2)["peak"]
    engine = vimrt.Engine(tiny_model, device="cpu", threads=1, max_memory=limit)
    expected = engine.run(batch)
    np.testing.assert_allclose(expected, free.run(batch), rtol=1e-6, atol=1e-6)
    seen: list[int] = []

    def run() -> None:
        for _ in range(10):
            np.testing.assert_array_equal(engine.run(batch), expected)
            seen.append(engine.memory["activations"])

    together([run] * 8)
    assert 0 < max(seen) <= limit


def test_errors_of_one_thread_leave_the_others_alone(
    tiny_model: Path, expected: list[FloatArray], threads: int
) -> None:
    engine = vimrt.Engine(tiny_model, device="cpu", threads=threads)

    def good() -> None:
        for i, size in enumerate(SIZES):
            np.testing.assert_array_equal(engine.run(pixels(size)), expected[i])

    def bad() -> None:
        for _ in range(30):
            with pytest.raises(vimrt.InvalidArgument):
                engine.run(np.zeros((1, 3, 2, 2), np.float32))
            with pytest.raises(vimrt.InvalidArgument):
                engine.run(pixels(SIZES[0]), outputs=["nothing"])

    together([good, bad, good, bad])


def test_everything_that_reads_an_engine_may_run_beside_its_runs(tiny_model: Path) -> None:
    engine = vimrt.Engine(tiny_model, device="cpu")
    photograph = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    classes = engine.classify(photograph)

    def runs() -> None:
        for size in SIZES:
            engine.run(pixels(size), outputs=["logits", "tokens"])

    def reads() -> None:
        for batch, height, width in SIZES:
            assert engine.program(batch, (height, width))["peak"] > 0
            assert engine.memory["constants"] > 0
            assert engine.classify(photograph) == classes

    together([runs, reads, runs, reads])


def test_an_engine_may_be_dropped_while_others_run(tiny_model: Path, expected: list[FloatArray], threads: int) -> None:
    def work() -> None:
        for i, size in enumerate(SIZES):
            engine = vimrt.Engine(tiny_model, device="cpu", threads=threads)
            np.testing.assert_array_equal(engine.run(pixels(size)), expected[i])
            del engine

    together([work] * 4)


def test_an_engine_in_use_survives_the_last_name_for_it(
    tiny_model: Path, expected: list[FloatArray], threads: int
) -> None:
    """A run under way holds its engine; dropping the name elsewhere frees nothing that it needs."""
    engines = [vimrt.Engine(tiny_model, device="cpu", threads=threads) for _ in range(20)]
    last = len(SIZES) - 1

    def runs() -> None:
        while engines:
            try:
                engine = engines[-1]
            except IndexError:
                return
            np.testing.assert_array_equal(engine.run(pixels(SIZES[last])), expected[last])

    def drops() -> None:
        while engines:
            engines.pop()

    together([runs, runs, drops])


def in_child(function: Callable[[], Any]) -> str:
    """What `function` returned or raised in a forked child, as text; a child that hangs is an error."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = repr(function())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write_end, answer.encode()[:4000])
        os._exit(0)
    os.close(write_end)
    waiting = threading.Timer(60, os.kill, (child, 9))
    waiting.start()
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read().decode()
    waiting.cancel()
    os.waitpid(child, 0)
    return answer


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_fork_an_engine_with_threads_says_that_they_are_gone(tiny_model: Path) -> None:
    engine = vimrt.Engine(tiny_model, device="cpu", threads=2)
    image = pixels((1, 28, 28))
    expected = engine.run(image)
    answer = in_child(lambda: engine.run(image))
    assert answer.startswith("DeviceError: ")
    assert "fork" in answer
    assert "make a new Engine in the child" in answer
    np.testing.assert_array_equal(engine.run(image), expected)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_fork_an_engine_of_one_thread_and_a_new_engine_work(tiny_model: Path) -> None:
    single = vimrt.Engine(tiny_model, device="cpu", threads=1)
    double = vimrt.Engine(tiny_model, device="cpu", threads=2)
    image = pixels((1, 28, 28))
    expected, expected_double = single.run(image), double.run(image)
    assert in_child(lambda: bool((single.run(image) == expected).all())) == "True"

    def made_in_child() -> bool:
        return bool((vimrt.Engine(tiny_model, device="cpu", threads=2).run(image) == expected_double).all())

    assert in_child(made_in_child) == "True"


def run_in_process(model: Path, queue: Any) -> None:
    queue.put(vimrt.Engine(model, device="cpu").run(pixels((1, 28, 28))))


def test_spawned_processes_have_engines_of_their_own(tiny_model: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run_in_process, args=(tiny_model, queue))
    process.start()
    found = queue.get(timeout=120)
    process.join(timeout=60)
    assert process.exitcode == 0
    expected = vimrt.Engine(tiny_model, device="cpu").run(pixels((1, 28, 28)))
    np.testing.assert_array_equal(found, expected)


def test_a_process_ends_cleanly_while_threads_run(tiny_model: Path) -> None:
    """Daemon threads are in the middle of a run when the interpreter goes away."""
    script = f"""
        import threading, time
        import numpy as np, vimrt
        engine = vimrt.Engine({str(tiny_model)!r}, device="cpu", threads=2)
        image = np.zeros((4, 3, 64, 64), np.float32)
        def run():
            while True:
                engine.run(image)
        for _ in range(4):
            threading.Thread(target=run, daemon=True).start()
        time.sleep(0.5)
        print("done", flush=True)
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

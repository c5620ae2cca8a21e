"""Times of GPU work by CUDA events. Functions take turns, so that clocks and temperature are the same for all."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from .timing import Timing

# A turn is a burst of calls: long enough that the first one's cold caches do not count, short enough that the card's
# state is the same for the next function.
_BURST_SECONDS = 0.05
_MAX_BURST = 25
_WARM_UP_CALLS = 5
# Clocks are sampled some times a second, and a card takes some tenths of a second to reach them.
_MIN_SECONDS = 1.0
_CYCLES_PER_SECOND = 2e9  # about what a card's clock counts


def interleave_on_gpu(
    functions: Mapping[str, Callable[[], object]],
    stream: torch.cuda.Stream,
    calls: int = 50,
    *,
    budget_seconds: float = 60.0,
    min_seconds: float = _MIN_SECONDS,
) -> dict[str, Timing]:
    """Times functions that enqueue work on `stream`, by turns.

    Before a burst is enqueued, the card is given something to wait in, so that the host is ahead and no time of the
    host's lies between two calls. Every call lies between two events of its own.

    Args:
        functions: by name; each enqueues one run and returns without waiting.
        stream: the stream they use.
        calls: counted calls of each function, at least.
        budget_seconds: ends the rounds early, but not before each function was called three times.
        min_seconds: rounds go on until this has passed.

    Returns:
        the timing of each function, by its name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    lead = {name: _enqueue_seconds(function, stream) for name, function in functions.items()}
    bursts: dict[str, int] = {}
    for name, function in functions.items():
        expected = statistics.median(_burst(function, stream, _WARM_UP_CALLS, lead[name]))
        bursts[name] = max(1, min(_MAX_BURST, int(_BURST_SECONDS / expected)))
    start = time.perf_counter()
    while True:
        for name, function in functions.items():
            seconds[name] += _burst(function, stream, bursts[name], lead[name])
        passed, fewest = time.perf_counter() - start, min(map(len, seconds.values()))
        if (fewest >= calls and passed >= min_seconds) or (fewest >= 3 and passed >= budget_seconds):
            return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _enqueue_seconds(function: Callable[[], object], stream: torch.cuda.Stream) -> float:
    """The host's time for one call, by the median."""
    times = []
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_CALLS):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    stream.synchronize()
    return statistics.median(times)


def _burst(function: Callable[[], object], stream: torch.cuda.Stream, count: int, host_seconds: float) -> list[float]:
    """Seconds of `count` calls, one behind the other, each of which takes the host `host_seconds` to enqueue."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(_CYCLES_PER_SECOND * (1e-3 + 2 * count * host_seconds)))
        marks[0].record(stream)
        for mark in marks[1:]:
            function()
            mark.record(stream)
    stream.synchronize()
    return [1e-3 * before.elapsed_time(after) for before, after in itertools.pairwise(marks)]

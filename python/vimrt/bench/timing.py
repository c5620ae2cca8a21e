"""Wall time of functions that take turns, so that other load on the machine falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# After a run, idle threads of OpenMP and of the engine spin for some milliseconds before they sleep. The next function
# starts when they have let go of their cores.
_SETTLE_SECONDS = 0.01
# A call this short is preceded by an uncounted one, which fetches its weights into the caches and wakes its threads.
_SHORT_SECONDS = 0.2
_MIN_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """The counted calls of one function, in seconds, in the order they were made."""

    calls: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of the median call."""
        return statistics.median(self.calls)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds that a quarter and three quarters of the calls stay below."""
        if len(self.calls) < 2:
            return self.calls[0], self.calls[0]
        first, _, third = statistics.quantiles(self.calls, n=4, method="inclusive")
        return first, third


def interleave(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    budget_seconds: float = 30.0,
) -> dict[str, Timing]:
    """Times functions by turns: in each round every function is called once.

    One uncounted round warms up. Ends after `rounds` rounds or, once three were timed, after `budget_seconds`.

    Returns:
        the timing of each function, by its name.
    """
    calls: dict[str, list[float]] = {name: [] for name in functions}
    expected = {name: _seconds(function) for name, function in functions.items()}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= _MIN_ROUNDS and time.perf_counter() - start > budget_seconds:
            break
        for name, function in functions.items():
            time.sleep(_SETTLE_SECONDS)
            if expected[name] < _SHORT_SECONDS:
                function()
            calls[name].append(_seconds(function))
    return {name: Timing(tuple(seconds)) for name, seconds in calls.items()}


def _seconds(function: Callable[[], object]) -> float:
    before = time.perf_counter()
    function()
    return time.perf_counter() - before

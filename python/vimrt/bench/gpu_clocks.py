"""The clocks a GPU really runs at while it is measured."""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType
from typing import NamedTuple

from .nvml import Nvml, NvmlError

_INTERVAL_SECONDS = 0.05


class Sample(NamedTuple):
    """The card at `when`, a value of time.monotonic(): MHz, °C, watts."""

    when: float
    sm: float
    memory: float
    temperature: float
    power: float


class ClockSampler:
    """Reads clocks twenty times a second while its `with` block lasts. Without a card it has nothing to tell."""

    def __init__(self, card: Nvml | None) -> None:
        self._card = card
        self._samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> ClockSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        try:
            while self._card is not None and not self._ended.wait(_INTERVAL_SECONDS):
                sm, memory = self._card.clocks()
                now = time.monotonic()
                self._samples.append(Sample(now, sm, memory, self._card.temperature(), self._card.power()))
        except NvmlError:
            return

    def between(self, begin: float, end: float) -> dict[str, float] | None:
        """What was seen between two values of time.monotonic(): median and lowest SM clock and median memory clock in
        MHz, highest temperature in °C and power in watts; None without a sample."""
        taken = [sample for sample in self._samples if begin <= sample.when <= end]
        if not taken:
            return None
        return {
            "samples": len(taken),
            "sm_mhz": statistics.median(sample.sm for sample in taken),
            "sm_mhz_lowest": min(sample.sm for sample in taken),
            "memory_mhz": statistics.median(sample.memory for sample in taken),
            "temperature_c": max(sample.temperature for sample in taken),
            "power_w": max(sample.power for sample in taken),
        }

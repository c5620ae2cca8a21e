"""A GPU's clocks, temperature, power and driver, from NVML, the driver's library that nvidia-smi asks too."""

from __future__ import annotations

import ctypes

_LIBRARY = "libnvidia-ml.so.1"
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # nvmlClockType_t
_GPU_TEMPERATURE = 0  # nvmlTemperatureSensors_t


class NvmlError(RuntimeError):
    """NVML is not there, or refuses."""


class Nvml:
    """One card. Its calls release Python's lock, so that a thread may sample while others work.

    Args:
        uuid: of the card, as "GPU-...". CUDA's numbers are not NVML's, which does not know CUDA_VISIBLE_DEVICES.

    Raises:
        NvmlError: there is no NVML, or no such card.
    """

    def __init__(self, uuid: str) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NvmlError(f"{_LIBRARY} cannot be loaded: {error}") from error
        self._call("nvmlInit_v2")
        self._card = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), ctypes.byref(self._card))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise NvmlError(f"{name} fails with {status}")

    def _number(self, name: str, *arguments: object) -> int:
        value = ctypes.c_uint()
        self._call(name, self._card, *arguments, ctypes.byref(value))
        return value.value

    def driver(self) -> str:
        """The driver's version."""
        text = ctypes.create_string_buffer(96)
        self._call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(len(text)))
        return text.value.decode()

    def clocks(self) -> tuple[int, int]:
        """Those of the multiprocessors and of memory now, in MHz."""
        sm, memory = (self._number("nvmlDeviceGetClockInfo", ctypes.c_int(i)) for i in (_SM_CLOCK, _MEMORY_CLOCK))
        return sm, memory

    def max_clocks(self) -> tuple[int, int]:
        """The highest that the card can run at, in MHz."""
        sm, memory = (self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_int(i)) for i in (_SM_CLOCK, _MEMORY_CLOCK))
        return sm, memory

    def temperature(self) -> int:
        """In °C."""
        return self._number("nvmlDeviceGetTemperature", ctypes.c_int(_GPU_TEMPERATURE))

    def power(self) -> float:
        """In watts."""
        return 1e-3 * self._number("nvmlDeviceGetPowerUsage")


def open_card(index: int) -> Nvml | None:
    """The card `index` as PyTorch numbers it; None where NVML cannot be asked."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    try:
        return None if uuid is None else Nvml(f"GPU-{uuid}")
    except NvmlError:
        return None

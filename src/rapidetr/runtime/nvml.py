"""One NVIDIA GPU through NVML: what it is, and how it feels at this moment. The only place that talks to NVML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

POWER_CAP = "software power cap"
# bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h); idle, application clocks and display clocks are no throttling
THROTTLES = {
    0x4: POWER_CAP,
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
SM, MEMORY = 1, 2  # nvmlClockType_t
SLOWDOWN, GPU_MAX = 1, 3  # nvmlTemperatureThresholds_t


class Nvml:
    """Readings of one GPU; `library` is pynvml or a recording of it. What a card does not tell is null."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    def facts(self) -> dict[str, Any]:
        """What stays the same: name, memory, driver, power limit, highest clock."""
        power = self._read("nvmlDeviceGetEnforcedPowerLimit")
        ecc = self._read("nvmlDeviceGetEccMode")
        return {
            "name": _plain(self._read("nvmlDeviceGetName")),
            "memory_bytes": getattr(self._read("nvmlDeviceGetMemoryInfo"), "total", None),
            "driver": _plain(_quiet(self.library.nvmlSystemGetDriverVersion)),
            "cuda_driver": _cuda(_quiet(self.library.nvmlSystemGetCudaDriverVersion)),
            "power_limit_w": None if power is None else power / 1000,
            "max_clock_mhz": self._read("nvmlDeviceGetMaxClockInfo", SM),
            "ecc": None if ecc is None else bool(ecc[0]),
        }

    def reading(self) -> dict[str, Any]:
        """What changes: clocks in MHz, temperature in degrees Celsius and its limit, power in watts, reasons of throttling."""
        power, bits = self._read("nvmlDeviceGetPowerUsage"), self._read("nvmlDeviceGetCurrentClocksThrottleReasons")
        limits = [self._read("nvmlDeviceGetTemperatureThreshold", kind) for kind in (SLOWDOWN, GPU_MAX)]
        return {
            "clock_mhz": self._read("nvmlDeviceGetClockInfo", SM),
            "memory_clock_mhz": self._read("nvmlDeviceGetClockInfo", MEMORY),
            "temperature_c": self._read("nvmlDeviceGetTemperature", 0),
            "temperature_limit_c": min((limit for limit in limits if limit), default=None),
            "power_w": None if power is None else power / 1000,
            "throttles": None if bits is None else [name for bit, name in THROTTLES.items() if bits & bit],
        }

    def _read(self, name: str, *args: int) -> Any:
        return _quiet(lambda: getattr(self.library, name)(self.handle, *args))


def open_gpu(device: str, library: Any = None, variables: Mapping[str, str] = os.environ) -> Nvml | None:
    """The GPU behind "cuda" or "cuda:N"; None for another device, without nvidia-ml-py or without a driver."""
    if not device.startswith("cuda"):
        return None
    try:
        if library is None:
            import pynvml

            library = pynvml
        library.nvmlInit()
        index = int(device.partition(":")[2] or 0)
        visible = [entry.strip() for entry in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
        name = visible[index] if visible else str(index)  # CUDA counts the visible ones, NVML all
        handle = library.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else library.nvmlDeviceGetHandleByUUID(name)
        return Nvml(library, handle)
    except Exception:  # NVML has an error class for each code; a sensor that is not there is no failure
        return None


def _quiet(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # such as NVMLError_NotSupported: cards differ in what they tell
        return None


def _plain(text: Any) -> Any:
    return text.decode() if isinstance(text, bytes) else text  # releases before 12 give bytes


def _cuda(number: int | None) -> str | None:
    """NVML writes 12.8 as 12080."""
    return None if number is None else f"{number // 1000}.{number % 1000 // 10}"

"""The most memory that this process and its device held since a moment."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

import psutil

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peaks(device: str) -> None:
    """Count from now on, as far as the system allows: Linux does, elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    if cuda := cuda_of(device):
        cuda.reset_peak_memory_stats(device)


def peak_process_mb() -> float:
    """Resident memory at its most, in MB of 1e6 bytes."""
    with contextlib.suppress(OSError):
        if match := re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()):
            return int(match[1]) * 1024 / 1e6
    held = psutil.Process().memory_info()
    return float(getattr(held, "peak_wset", held.rss)) / 1e6


def peak_device_mb(device: str) -> float | None:
    """What torch reserved on a CUDA device at its most; None on others."""
    cuda = cuda_of(device)
    return cuda.max_memory_reserved(device) / 1e6 if cuda else None


def cuda_of(device: str) -> Any:
    """torch.cuda where torch runs on CUDA, else None; torch is not imported for it."""
    return sys.modules["torch"].cuda if device.startswith("cuda") and "torch" in sys.modules else None

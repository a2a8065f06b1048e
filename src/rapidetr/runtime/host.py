"""What the machine under a process offers: processor, its limits, memory. Read from files, so that tests bring their own."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import psutil

from rapidetr.runtime.nvml import Nvml, open_gpu

T = TypeVar("T")

# instruction sets that kernels are chosen by, on x86 and on ARM
FLAGS = re.compile(r"sse4_2|avx|avx2|fma|f16c|avx_vnni|avx512\w+|amx_\w+|neon|asimd\w*|sve\w*|i8mm|bf16|fphp")
FAST_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and the one of ARM


@dataclass(frozen=True)
class Sources:
    """Where an environment is read from."""

    root: Path = Path("/")  # of /proc and /sys
    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)
    version: Callable[[str], str] = version  # of an installed distribution; raises where it is not
    modules: Mapping[str, Any] = field(default_factory=lambda: sys.modules)  # live settings are read from torch only if it is here
    gpu: Callable[[str], Nvml | None] = open_gpu


def attempt(read: Callable[[], T]) -> T | None:
    """What `read` gives; None where it fails, because a record of the environment must never stop the work."""
    try:
        return read()
    except Exception:
        return None


def describe_processor(root: Path) -> dict[str, Any]:
    """Model, flags, cores and limits; a quota is in cores, null is none or not readable."""
    info = _text(root / "proc/cpuinfo")
    x86 = _entry(info, "flags")
    flags = set((x86 or _entry(info, "Features") or "").split())
    cpus = root / "sys/devices/system/cpu"
    no_turbo, boost = _number(cpus / "intel_pstate/no_turbo"), _number(cpus / "cpufreq/boost")
    return {
        "model": _model(info),
        "architecture": platform.machine(),
        "flags": sorted(flag for flag in flags if FLAGS.fullmatch(flag)),
        "microcode": _entry(info, "microcode"),
        "virtual": None if x86 is None else "hypervisor" in flags,
        "physical_cores": attempt(lambda: psutil.cpu_count(logical=False)),
        "logical_cores": attempt(lambda: psutil.cpu_count()),
        "affinity": attempt(lambda: psutil.Process().cpu_affinity()),
        "quota_cores": min(_quotas(root), default=None),
        "governor": _shared(cpus, "scaling_governor"),
        "max_mhz": _mhz(_shared(cpus, "scaling_max_freq")),
        "min_mhz": _mhz(_shared(cpus, "scaling_min_freq")),
        "turbo": not no_turbo if no_turbo is not None else None if boost is None else bool(boost),
        "smt": None if (smt := _number(cpus / "smt/active")) is None else bool(smt),
    }


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether the processor multiplies in bfloat16; without that it is many times slower than float32. `root`: of /proc."""
    return bool(FAST_BFLOAT16 & set(describe_processor(root)["flags"]))


def describe_memory(root: Path) -> dict[str, Any]:
    """Bytes of the machine, and the limit of the control group below them."""
    total = attempt(lambda: int(psutil.virtual_memory().total))
    limits = [_number(folder / name) for folder in _groups(root, "memory") for name in ("memory.max", "memory.limit_in_bytes")]
    # version 1 writes a number near 2**63 for "none"
    return {"total_bytes": total, "limit_bytes": min((int(v) for v in limits if v is not None and v < (total or 2**62)), default=None)}


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups, version 1 and 2, that hold this process, innermost first."""
    for number, names, path in re.findall(r"^(\d+):([^:]*):(/.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE):
        if number == "0" or controller in names.split(","):
            base = root / "sys/fs/cgroup" / ("" if number == "0" else controller)
            parts = PurePosixPath(path).parts[1:]
            yield from (base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _quotas(root: Path) -> Iterator[float]:
    """CPU limits in cores, one for each group that sets one."""
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota, period = quota or _text(folder / "cpu.cfs_quota_us"), period or _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no limit
            yield int(quota) / int(period)


def _model(info: str) -> str | None:
    """As the kernel names it; ARM has numbers for names."""
    arm = [_entry(info, f"CPU {what}") for what in ("implementer", "part")]
    return _entry(info, "model name") or (f"ARM implementer {arm[0]} part {arm[1]}" if all(arm) else platform.processor() or None)


def _shared(cpus: Path, name: str) -> str | None:
    """One value where all cores agree, else the different ones."""
    values = {_text(path) for path in cpus.glob(f"cpu[0-9]*/cpufreq/{name}")}
    return ", ".join(sorted(values)) or None


def _mhz(khz: str | None) -> float | None:
    """The largest of the values, in MHz."""
    return max((int(v) / 1000 for v in (khz or "").split(", ") if v.isdigit()), default=None)


def _entry(info: str, name: str) -> str | None:
    match = re.search(rf"^{name}\s*:\s*(.+)$", info, re.MULTILINE)
    return match[1].strip() if match else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"\d+", text) else None


def _text(path: Path) -> str:
    """Stripped content of a file; empty where there is none."""
    return attempt(lambda: path.read_text(encoding="utf-8", errors="replace").strip()) or ""

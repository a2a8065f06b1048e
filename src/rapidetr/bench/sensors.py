"""Was the machine quiet? Readings between the rounds of a benchmark, and the judgement that they allow.

No thread: the runner asks for a sample between rounds, so that reading never competes with what is timed. CPU time used by
others is what the counters of the kernel hold beyond this process and its children, over the cores that this process may use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rapidetr.runtime.host import attempt
from rapidetr.runtime.nvml import POWER_CAP, open_gpu


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since some moment in the past, summed over the cores that this process may use."""

    total: float  # everything, idle time included
    busy: float  # neither idle nor stolen
    stolen: float  # taken by the hypervisor
    own: float  # of `busy`, by this process and its children


@dataclass(frozen=True)
class Sample:
    """One look at the machine; null is what cannot be read."""

    at_s: float
    cpu_mhz: float | None  # of the fastest core: idle cores are slow and say nothing
    cpu: CpuTimes | None
    cpu_throttles: int | None  # times that a core or package was slowed down for heat since start
    gpu: dict[str, Any] | None  # see Nvml.reading

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Beyond these a run is not usable."""

    clock_share: float = 0.85  # clocks of CPU and GPU against the first sample; turbo alone moves them by some per cent
    stolen_share: float = 0.05  # of the CPU time of the cores that may be used
    other_share: float = 0.10  # the same, by other processes
    window_s: float = 1.0  # CPU seconds that a share is judged over: counters move in steps of 0.01 s


@dataclass(frozen=True)
class Noise:
    """Whether figures of a run can be used: why not, and what could not be judged."""

    usable: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"usable": self.usable, "reasons": list(self.reasons), "notes": list(self.notes)}


def read_cpu_mhz() -> float:
    """MHz of the fastest core; raises where no core tells."""
    return max(core.current for core in psutil.cpu_freq(percpu=True) if core.current)


def read_cpu_times() -> CpuTimes:
    """Counters of the cores in this process's affinity (all cores where there is no such thing)."""
    process, cores = psutil.Process(), psutil.cpu_times(percpu=True)
    allowed = attempt(process.cpu_affinity) or range(len(cores))
    total = busy = stolen = 0.0
    for core in (cores[i]._asdict() for i in allowed):
        everything = sum(v for name, v in core.items() if name not in ("guest", "guest_nice"))  # those are part of user and nice
        taken = core.get("steal", 0.0)
        total, stolen = total + everything, stolen + taken
        busy += everything - taken - core["idle"] - core.get("iowait", 0.0)
    if total == 0:
        raise OSError("this kernel does not count CPU time")
    own = [process.cpu_times(), *filter(None, (attempt(child.cpu_times) for child in process.children(recursive=True)))]
    return CpuTimes(total, busy, stolen, sum(t.user + t.system + t.children_user + t.children_system for t in own))


def read_cpu_throttles(root: Path = Path("/")) -> int:
    """Sum of the thermal throttle counters; raises where there are none."""
    counters = list(root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"))
    if not counters:
        raise OSError("no thermal throttle counters")
    return sum(int(path.read_text()) for path in counters)


class Watch:
    """Samples in the order they were taken; a reader that fails gives null. Tests bring their own readers and clock."""

    def __init__(
        self,
        device: str = "cpu",
        *,
        now: Callable[[], float] = time.perf_counter,
        cpu_mhz: Callable[[], float] = read_cpu_mhz,
        cpu_times: Callable[[], CpuTimes] = read_cpu_times,
        cpu_throttles: Callable[[], int] = read_cpu_throttles,
        gpu: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.now, self.cpu_mhz, self.cpu_times, self.cpu_throttles = now, cpu_mhz, cpu_times, cpu_throttles
        card = open_gpu(device) if gpu is None else None
        self.gpu = card.reading if card else gpu
        self.samples: list[Sample] = []

    def sample(self) -> Sample:
        """One more; take the first after warm-up, because clocks are compared with it, and others between rounds."""
        gpu = self.gpu and attempt(self.gpu)
        one = Sample(self.now(), attempt(self.cpu_mhz), attempt(self.cpu_times), attempt(self.cpu_throttles), gpu)
        self.samples.append(one)
        return one

    def judge(self, limits: Limits | None = None) -> Noise:
        return judge_noise(self.samples, limits)


@dataclass
class _Findings:
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def judge_noise(samples: Sequence[Sample], limits: Limits | None = None) -> Noise:
    """Unusable with every reason found; a sensor that is missing is a note and no reason."""
    limits, found = limits or Limits(), _Findings()
    gpus = [s.gpu for s in samples if s.gpu]
    _judge_clock("CPU", [s.cpu_mhz for s in samples], limits, found)
    _judge_load([s.cpu for s in samples if s.cpu], limits, found)
    throttles = [s.cpu_throttles for s in samples if s.cpu_throttles is not None]
    if len(throttles) > 1 and throttles[-1] > throttles[0]:
        found.reasons.append(f"CPU slowed down for heat {throttles[-1] - throttles[0]} times")
    if gpus:
        _judge_clock("GPU", [g["clock_mhz"] for g in gpus], limits, found)
        _judge_gpu(gpus, found)
    if not any((s.cpu_mhz, s.cpu, s.cpu_throttles is not None, s.gpu) != (None, None, False, None) for s in samples):
        found.notes = ["no sensor could be read; whether the machine was quiet is not known"]
    return Noise(not found.reasons, tuple(found.reasons), tuple(found.notes))


def _judge_clock(name: str, clocks: Sequence[float | None], limits: Limits, found: _Findings) -> None:
    known = [clock for clock in clocks if clock]
    if len(known) < 2:
        found.notes.append(f"{name} clock not known")
    elif (low := min(known)) < limits.clock_share * known[0]:
        found.reasons.append(
            f"{name} clock fell from {known[0]:.0f} to {low:.0f} MHz ({low / known[0]:.0%}; at least {limits.clock_share:.0%} expected)"
        )


def _judge_load(times: Sequence[CpuTimes], limits: Limits, found: _Findings) -> None:
    shares = list(_shares(times, limits.window_s))
    if not shares:
        found.notes.append("CPU time of others not known (unreadable, or the run was too short)")
        return
    for name, worst, limit in (
        ("the hypervisor took", max(stolen for stolen, _ in shares), limits.stolen_share),
        ("other processes used", max(other for _, other in shares), limits.other_share),
    ):
        if worst > limit:
            found.reasons.append(f"{name} {worst:.0%} of the CPU time (at most {limit:.0%} allowed)")


def _shares(times: Sequence[CpuTimes], window_s: float) -> Iterator[tuple[float, float]]:
    """(stolen, others') shares of each stretch of samples that is long enough; a burst in one round must not average out."""
    last = 0
    for i, now in enumerate(times):
        before = times[last]
        total = now.total - before.total
        if total >= window_s:
            others = (now.busy - before.busy) - (now.own - before.own)
            yield (now.stolen - before.stolen) / total, max(others, 0.0) / total
            last = i


def _judge_gpu(readings: Sequence[dict[str, Any]], found: _Findings) -> None:
    throttles = sorted({reason for reading in readings for reason in reading["throttles"] or ()})
    # many cards always work at their power limit; that counts when their clock falls, which is judged apart
    for reason in throttles:
        (found.notes if reason == POWER_CAP else found.reasons).append(f"GPU throttled: {reason}")
    hot = [r for r in readings if r["temperature_c"] and r["temperature_limit_c"] and r["temperature_c"] >= r["temperature_limit_c"]]
    if hot:
        found.reasons.append(f"GPU at {max(r['temperature_c'] for r in hot)} °C (limit {hot[0]['temperature_limit_c']} °C)")

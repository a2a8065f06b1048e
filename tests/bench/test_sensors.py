"""Was the machine quiet? Constructed readings, a recorded GPU, and the real counters of this machine."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rapidetr.bench.sensors import CpuTimes, Limits, Noise, Sample, Watch, judge_noise, read_cpu_mhz, read_cpu_throttles, read_cpu_times
from rapidetr.runtime.nvml import THROTTLES, Nvml, open_gpu

COOL: dict[str, Any] = {
    "clock_mhz": 1590, "memory_clock_mhz": 5000, "temperature_c": 60, "temperature_limit_c": 85, "power_w": 55.0, "throttles": [],
}  # fmt: skip


def quiet(n: int = 4) -> list[Sample]:
    """Samples 10 s apart on two cores: 20 CPU seconds each, 10 of them ours, 1 % others', 1 % stolen."""
    return [Sample(10.0 * i, 3000.0, CpuTimes(20.0 * i, 10.2 * i, 0.2 * i, 10.0 * i), 7, dict(COOL)) for i in range(n)]


def with_last(**changes: Any) -> list[Sample]:
    samples = quiet()
    fields = samples[-1].to_dict() | {"cpu": samples[-1].cpu} | changes
    return [*samples[:-1], Sample(**fields)]


def test_a_quiet_run_is_usable() -> None:
    assert judge_noise(quiet()) == Noise(True)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (with_last(cpu_mhz=2400.0), "CPU clock fell from 3000 to 2400 MHz (80%; at least 85% expected)"),
        (with_last(cpu_throttles=9), "CPU slowed down for heat 2 times"),
        (with_last(cpu=CpuTimes(60.0, 31.6, 2.4, 30.0)), "the hypervisor took 10% of the CPU time (at most 5% allowed)"),
        (with_last(cpu=CpuTimes(60.0, 34.4, 0.6, 30.0)), "other processes used 20% of the CPU time (at most 10% allowed)"),
        (with_last(gpu=COOL | {"clock_mhz": 1272}), "GPU clock fell from 1590 to 1272 MHz (80%; at least 85% expected)"),
        (with_last(gpu=COOL | {"throttles": ["hardware slowdown"]}), "GPU throttled: hardware slowdown"),
        (with_last(gpu=COOL | {"temperature_c": 86}), "GPU at 86 °C (limit 85 °C)"),
    ],
)
def test_each_kind_of_noise_makes_a_run_unusable(samples: Sequence[Sample], reason: str) -> None:
    assert judge_noise(samples) == Noise(False, (reason,))


@pytest.mark.parametrize(
    "samples",
    [
        with_last(cpu_mhz=2560.0),  # 85.3 %
        with_last(cpu_mhz=3600.0),
        with_last(cpu=CpuTimes(60.0, 32.2, 0.6, 30.0)),  # 9 % others
        with_last(cpu=CpuTimes(60.0, 30.6, 1.3, 30.0)),  # 4.5 % stolen
        with_last(cpu=CpuTimes(60.0, 29.9, 0.6, 30.0)),  # own time seems to exceed busy time: counters are not read at one moment
        with_last(gpu=COOL | {"temperature_c": 84}),
    ],
)
def test_what_lies_within_the_limits_is_usable(samples: Sequence[Sample]) -> None:
    assert judge_noise(samples) == Noise(True)


def test_a_power_cap_is_a_note_as_long_as_the_clock_holds() -> None:
    capped = COOL | {"throttles": ["software power cap"]}
    assert judge_noise(with_last(gpu=capped)) == Noise(True, (), ("GPU throttled: software power cap",))
    slow = judge_noise(with_last(gpu=capped | {"clock_mhz": 1000}))
    assert (slow.usable, slow.reasons) == (False, ("GPU clock fell from 1590 to 1000 MHz (63%; at least 85% expected)",))


def test_all_reasons_are_told_and_limits_can_be_chosen() -> None:
    samples = with_last(cpu_mhz=2400.0, cpu_throttles=8, gpu=COOL | {"throttles": ["hardware thermal slowdown"]})
    assert len(judge_noise(samples).reasons) == 3
    assert judge_noise(with_last(cpu_mhz=2400.0), Limits(clock_share=0.75)).usable


def test_a_burst_in_one_round_is_not_averaged_away() -> None:
    steps = [(20.0, 10.0, 10.0)] * 9 + [(20.0, 16.0, 10.0)]  # total, busy, own; six of twenty seconds others' in the last round
    times = [CpuTimes(0, 0, 0, 0)]
    for total, busy, own in steps:
        times.append(CpuTimes(times[-1].total + total, times[-1].busy + busy, 0, times[-1].own + own))
    samples = [Sample(float(i), 3000.0, t, None, None) for i, t in enumerate(times)]
    assert judge_noise(samples).reasons == ("other processes used 30% of the CPU time (at most 10% allowed)",)
    assert judge_noise([samples[0], samples[-1]]).usable  # over the whole run it would be 3 %


def test_short_rounds_are_judged_together() -> None:
    """In 0.04 CPU seconds a single tick of 0.01 s is 25 %."""
    times = [CpuTimes(0.04 * i, 0.02 * i + (0.01 if i == 7 else 0.0), 0.0, 0.02 * i) for i in range(60)]
    assert judge_noise([Sample(float(i), 3000.0, t, 0, None) for i, t in enumerate(times)]) == Noise(True)


def test_without_any_sensor_a_run_is_usable_with_a_note() -> None:
    nothing = Noise(True, (), ("no sensor could be read; whether the machine was quiet is not known",))
    assert judge_noise([Sample(float(i), None, None, None, None) for i in range(3)]) == nothing
    assert judge_noise([]) == nothing


def test_missing_sensors_are_notes() -> None:
    samples = [Sample(float(i), None, None, 3, None) for i in range(2)]
    assert judge_noise(samples) == Noise(
        True, (), ("CPU clock not known", "CPU time of others not known (unreadable, or the run was too short)")
    )
    assert judge_noise(with_last(gpu=COOL | {"throttles": None, "temperature_c": None, "clock_mhz": None})) == Noise(True)


def test_a_watch_takes_what_its_readers_give_and_survives_those_that_fail() -> None:
    clock, mhz = iter([1.0, 2.5]), iter([3000.0, 2000.0])

    def broken() -> Any:
        raise OSError("no such sensor")

    watch = Watch(now=lambda: next(clock), cpu_mhz=lambda: next(mhz), cpu_times=broken, cpu_throttles=broken, gpu=lambda: dict(COOL))
    assert watch.sample() == Sample(1.0, 3000.0, None, None, COOL)
    watch.sample()
    assert [s.at_s for s in watch.samples] == [1.0, 2.5]
    assert watch.judge().reasons == ("CPU clock fell from 3000 to 2000 MHz (67%; at least 85% expected)",)
    record = {"noise": watch.judge().to_dict(), "samples": [s.to_dict() for s in watch.samples]}
    assert json.loads(json.dumps(record)) == record


Linux = namedtuple("Linux", "user nice system idle iowait irq softirq steal guest guest_nice")
Mac = namedtuple("Mac", "user nice system idle")
Own = namedtuple("Own", "user system children_user children_system")


class Process:
    """Two children, one of which ends before it can be asked."""

    def __init__(self, cores: list[int] | None, own: Own) -> None:
        self.cores, self.own = cores, own

    def cpu_affinity(self) -> list[int] | None:
        if self.cores is None:
            raise AttributeError("macOS has no affinity")
        return self.cores

    def cpu_times(self) -> Own:
        return self.own

    def children(self, recursive: bool) -> list[Any]:
        assert recursive

        def gone() -> Any:
            raise psutil.NoSuchProcess(7)

        return [SimpleNamespace(cpu_times=lambda: Own(2.0, 1.0, 0.5, 0.25)), SimpleNamespace(cpu_times=gone)]


def test_cpu_times_are_those_of_the_allowed_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = [Linux(1, 2, 4, 8, 16, 32, 64, 128, 1, 2), Linux(10, 0, 0, 10, 0, 0, 0, 5, 0, 0), Linux(*[999.0] * 10)]
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: cores)
    monkeypatch.setattr(psutil, "Process", lambda: Process([0, 1], Own(3.0, 1.0, 0.5, 0.5)))
    assert read_cpu_times() == CpuTimes(total=255 + 25, busy=103 + 10, stolen=133, own=5.0 + 3.75)


def test_cpu_times_without_affinity_and_steal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Mac(1, 2, 4, 8), Mac(10, 0, 0, 10)])
    monkeypatch.setattr(psutil, "Process", lambda: Process(None, Own(0.0, 0.0, 0.0, 0.0)))
    assert read_cpu_times() == CpuTimes(total=35, busy=17, stolen=0, own=3.75)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Mac(0, 0, 0, 0)])
    with pytest.raises(OSError, match="does not count CPU time"):
        read_cpu_times()


def test_the_fastest_core_tells_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [SimpleNamespace(current=c) for c in (800.0, 3100.0, 0.0)])
    assert read_cpu_mhz() == 3100.0


def test_throttle_counters_of_all_cores_are_summed(tmp_path: Path) -> None:
    for core, counts in enumerate([(3, 5), (4, 5)]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        folder.mkdir(parents=True)
        for name, number in zip(("core", "package"), counts, strict=True):
            (folder / f"{name}_throttle_count").write_text(f"{number}\n")
            (folder / f"{name}_throttle_total_time_ms").write_text("900\n")
    assert read_cpu_throttles(tmp_path) == 17
    with pytest.raises(OSError, match="no thermal throttle counters"):
        read_cpu_throttles(tmp_path / "none")


def test_the_counters_of_this_machine_move_with_our_work() -> None:
    """Real counters: own time grows by what this process uses, and the cores were busy meanwhile (half: the kernel samples that)."""
    try:
        before = read_cpu_times()
    except OSError:
        pytest.skip("this kernel does not count CPU time")
    used = psutil.Process().cpu_times()
    while (now := psutil.Process().cpu_times()).user + now.system < used.user + used.system + 0.3:
        sum(range(10_000))
    after = read_cpu_times()
    own = after.own - before.own
    assert 0.28 < own < 1.0
    assert after.busy - before.busy > own / 2
    assert after.total - before.total >= after.busy - before.busy - 1e-6  # both are sums of hundredths in binary fractions


class Recording:
    """pynvml as it answers for one card; values recorded by hand after nvml.h, entries that are missing raise as a card without them."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.asked.append((name, *args))
            key = f"{name}({', '.join(map(str, args[1:]))})"
            if key not in self.answers:
                raise RuntimeError("Not Supported")
            return self.answers[key]

        return call


T4 = {
    "nvmlDeviceGetName()": b"Tesla T4",
    "nvmlDeviceGetMemoryInfo()": SimpleNamespace(total=16106127360, used=1, free=2),
    "nvmlSystemGetDriverVersion()": "550.54.15",
    "nvmlSystemGetCudaDriverVersion()": 12040,
    "nvmlDeviceGetEnforcedPowerLimit()": 70000,
    "nvmlDeviceGetMaxClockInfo(1)": 1590,
    "nvmlDeviceGetEccMode()": [1, 1],
    "nvmlDeviceGetPowerUsage()": 68250,
    "nvmlDeviceGetCurrentClocksThrottleReasons()": 0x4 | 0x20,
    "nvmlDeviceGetClockInfo(1)": 1215,
    "nvmlDeviceGetClockInfo(2)": 5000,
    "nvmlDeviceGetTemperature(0)": 81,
    "nvmlDeviceGetTemperatureThreshold(1)": 93,
    "nvmlDeviceGetTemperatureThreshold(3)": 85,
}


def test_a_recorded_card_is_read() -> None:
    card = Nvml(Recording(T4), "handle")
    assert card.facts() == {
        "name": "Tesla T4", "memory_bytes": 16106127360, "driver": "550.54.15", "cuda_driver": "12.4", "power_limit_w": 70.0,
        "max_clock_mhz": 1590, "ecc": True,
    }  # fmt: skip
    assert card.reading() == {
        "clock_mhz": 1215, "memory_clock_mhz": 5000, "temperature_c": 81, "temperature_limit_c": 85, "power_w": 68.25,
        "throttles": ["software power cap", "software thermal slowdown"],
    }  # fmt: skip


def test_a_card_that_tells_nothing_gives_nulls_and_can_be_judged() -> None:
    card = Nvml(Recording({}), "handle")
    assert set(card.facts().values()) == {None}
    assert set(card.reading().values()) == {None}
    noise = judge_noise([Sample(float(i), 3000.0, None, 0, card.reading()) for i in range(2)])
    assert (noise.usable, "GPU clock not known" in noise.notes) == (True, True)


@pytest.mark.parametrize("idle", [0x0, 0x1, 0x2, 0x100, 0x1 | 0x2])
def test_idle_and_chosen_clocks_are_no_throttling(idle: int) -> None:
    answers = T4 | {"nvmlDeviceGetCurrentClocksThrottleReasons()": idle}
    assert Nvml(Recording(answers), "handle").reading()["throttles"] == []


@pytest.mark.parametrize(
    ("device", "visible", "asked"),
    [
        ("cuda", "", ("nvmlDeviceGetHandleByIndex", 0)),
        ("cuda:2", "", ("nvmlDeviceGetHandleByIndex", 2)),
        ("cuda:1", "3,5", ("nvmlDeviceGetHandleByIndex", 5)),
        ("cuda", "GPU-abc", ("nvmlDeviceGetHandleByUUID", "GPU-abc")),
    ],
)
def test_the_card_that_cuda_means_is_opened(device: str, visible: str, asked: tuple[Any, ...]) -> None:
    answers = {"nvmlInit()": None, "nvmlDeviceGetHandleByIndex()": "card", "nvmlDeviceGetHandleByUUID()": "card"}
    library = Recording(answers)
    found = open_gpu(device, library, {"CUDA_VISIBLE_DEVICES": visible})
    assert found is not None
    assert (library.asked[-1], found.handle) == (asked, "card")


NO_CARD = [
    ("cpu", Recording({"nvmlInit()": None, "nvmlDeviceGetHandleByIndex()": "card"})),
    ("cuda", Recording({})),  # no driver
    ("cuda:9", Recording({"nvmlInit()": None})),  # no such card
]


@pytest.mark.parametrize(("device", "library"), NO_CARD)
def test_no_card_no_driver_and_no_cuda_are_no_errors(device: str, library: Recording) -> None:
    assert open_gpu(device, library, {}) is None


def test_the_functions_exist_in_the_library() -> None:
    """The recording answers to any name, so the names are compared with the real module."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    library = Recording({})
    card = Nvml(library, "handle")
    card.facts(), card.reading()
    assert [name for name, *_ in library.asked if not hasattr(pynvml, name)] == []
    names = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert [getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in names] == list(THROTTLES)
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM) == (1, 2)
    assert (pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN, pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX) == (1, 3)

"""What is reported is what was spent, however work arrives."""

from __future__ import annotations

import json
import threading
from itertools import count

import numpy as np
import pytest
import torch
from known_times import PICTURES, SlowEngine, Time, detector, instruments, jitter, steady

from rapidetr.bench import runner
from rapidetr.bench.loads import Load, LoadShape, arrivals, check, forget, warm_up
from rapidetr.bench.runner import Instruments, Plan, measure_row, measure_rows
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.reports import BenchRow
from rapidetr.core.work import gigamacs

LONG = Plan(rounds=100, seconds=1e9, forward_calls=5)
WITHIN = 0.02  # of the truth, as promised


def test_known_delays_and_jitter_are_reported() -> None:
    time, truth = Time(), jitter(7)
    slow = steady(time, jitter(7), prepare_s=0.004, transfer_s=0.001)
    row = measure_row(slow, "x", PICTURES, LoadShape(), LONG, instruments=instruments(time))
    runs = np.array([truth() for _ in range(300 + 40)])  # warm-up takes an unknown few of them
    total = 1000 * runs + 5
    for p in (50, 90, 95, 99):
        assert getattr(row.total, f"p{p}") == pytest.approx(np.percentile(total, p), rel=0.03 if p == 99 else WITHIN)  # 3 runs beyond p99
    assert row.stages["prepare"].p95 == pytest.approx(4, rel=1e-6)
    assert row.stages["transfer"].p50 == pytest.approx(1, rel=1e-6)
    assert row.stages["run"].mean == pytest.approx(row.total.mean - 5, rel=1e-6)
    assert row.images_per_second == pytest.approx(1000 / row.total.mean, rel=1e-6)
    assert sum(s.mean for name, s in row.stages.items() if name != "total") == pytest.approx(row.total.mean, rel=1e-9)
    assert row.unaccounted == pytest.approx(0, abs=1e-9)
    assert (row.total.count, np.shape(row.totals_ms)) == (300, (100, 3))
    low, high = row.total.p50_interval
    assert low <= row.total.p50 <= high
    assert row.usable
    assert row.gmacs == gigamacs(slow.config, slow.size_hw, row.decoder_layers, row.queries)
    assert BenchRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_time_outside_all_stages_is_found() -> None:
    time = Time()
    slow = steady(time)
    predict = slow.predict

    def predict_and_dawdle(*args, **options):
        time.sleep(0.005)
        return predict(*args, **options)

    slow.predict = predict_and_dawdle  # type: ignore[method-assign]
    row = measure_row(slow, "x", PICTURES, LoadShape(), Plan(rounds=20), instruments=instruments(time))
    assert row.unaccounted == pytest.approx(0.2)
    assert "20.0% of the total lies outside all stages (at most 2% expected)" in row.reasons


@pytest.mark.parametrize("load", ["closed", "open"])
def test_a_stall_shows_where_work_arrives_by_itself(load: str) -> None:
    """One of 300 calls hangs for 3 s. One after another, one slow call is all there is; arrivals pile up behind it."""
    time, calls = Time(), count()
    row = measure_row(
        steady(time, lambda: 3.0 if next(calls) == 100 else 0.020),
        "x",
        PICTURES,
        LoadShape(rate=10.0 if load == "open" else None),
        LONG,
        instruments=instruments(time),
    )
    assert row.total.max > 3000 - 1e-6
    assert row.total.p50 < 25
    if load == "closed":
        assert row.total.p99 == pytest.approx(20, rel=WITHIN)
    else:
        assert row.total.p99 > 1000
        assert row.stages["wait"].p99 > 1000  # and the report says that it was waiting
        assert row.images_per_second == pytest.approx(10, rel=WITHIN)


def test_arrivals_are_random_and_of_the_rate_asked() -> None:
    due = arrivals(1000, 25.0, seed=1)
    gaps = np.diff(due)
    assert due[-1] == pytest.approx(40)
    assert (gaps > 0).all()
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # exponential: standard error is 3 %
    assert not np.array_equal(due, arrivals(1000, 25.0, seed=2))


def test_more_arrivals_than_can_be_served_are_said() -> None:
    time = Time()
    row = measure_row(steady(time), "x", PICTURES, LoadShape(rate=80.0), Plan(), instruments=instruments(time))
    assert row.images_per_second < 51
    (note,) = row.reasons
    assert note.endswith("of 80 pictures a second were done: waiting grows with the length of the run")


def test_a_throttled_run_is_not_usable() -> None:
    time = Time()
    clock = iter([3000.0] * 5 + [1900.0] * 1000)
    row = measure_row(steady(time), "x", PICTURES, LoadShape(), LONG, instruments=instruments(time, mhz=clock))
    assert not row.usable
    assert row.reasons == ("CPU clock fell from 3000 to 1900 MHz (63%; at least 85% expected)",)
    assert row.noise["usable"] is False


def test_batches_go_through_together_and_count_as_pictures() -> None:
    time = Time()
    row = measure_row(steady(time, 0.080), "x", PICTURES, LoadShape(batch=4), Plan(), instruments=instruments(time))
    assert row.total.p50 == pytest.approx(80)
    assert row.images_per_second == pytest.approx(50)
    assert (row.total.p99, row.total.p95) == (None, pytest.approx(80))


def test_streams_call_at_the_same_time() -> None:
    both = threading.Barrier(2)
    engine = SlowEngine(lambda seconds: None, lambda: both.wait(30) * 0.0)  # a run ends when the other stream runs, too
    load = Load(detector(engine), PICTURES, LoadShape(streams=2))
    calls, _ = load.run(6, seconds=60)
    assert len(calls) == 6


def test_prefetching_prepares_in_its_pool_and_counts_waiting() -> None:
    time, names = Time(), set()
    engine = SlowEngine(time.sleep, lambda: 0.020)
    prepare = engine.prepare

    def prepare_and_tell(*args):
        names.add(threading.current_thread().name.split("_")[0])
        return prepare(*args)

    engine.prepare = prepare_and_tell  # type: ignore[method-assign]
    row = measure_row(
        detector(engine), "x", PICTURES, LoadShape(batch=2, prefetch=2), Plan(forward_calls=0, warm_up_s=0), instruments=instruments(time)
    )
    assert names == {"rapidetr-decode", "MainThread"}  # the main thread for the synchronous warm-up
    assert row.total.count == 60
    assert row.total.p95 == pytest.approx(20)
    assert row.stages["wait"].max == pytest.approx(0, abs=1e-9)
    assert row.unaccounted is None


def test_warm_up_ends_when_calls_settle_or_time_is_up() -> None:
    def warmed(run_s, seconds: float) -> tuple[int, bool]:
        time = Time()
        return warm_up(Load(steady(time, run_s), PICTURES, LoadShape(), now=time.now, sleep=time.sleep), seconds=seconds)

    falling = iter([0.5, 0.2, 0.1, 0.05, 0.03, *[0.02] * 100])
    assert warmed(lambda: next(falling), 100) == (10, True)
    assert warmed(0.02, 100) == (6, True)
    growing = count(1)
    assert warmed(lambda: 0.1 * 2 ** next(growing), 5) == (5, False)


def test_time_bounds_a_setting_and_what_may_be_said_of_it() -> None:
    time = Time()
    row = measure_row(steady(time, 1.0), "x", PICTURES, LoadShape(), Plan(seconds=9.5), instruments=instruments(time))
    assert row.total.count == 9  # ten calls are begun in time; rounds of three are whole
    assert (row.total.p90, row.total.p95, row.total.p95_interval) == (None, None, None)
    assert row.total.p50 == pytest.approx(1000)
    assert row.reasons == ("time was up after 10 of 60 calls",)


def test_plans_that_cannot_keep_their_word() -> None:
    with pytest.raises(ConfigError, match=r"^p99 of 48 runs says nothing; expected at least 299: 100 rounds$"):
        Plan(rounds=16, percentile=99)
    with pytest.raises(ConfigError, match="expected at least one round"):
        Plan(rounds=0)
    with pytest.raises(ConfigError, match="leave out rate or prefetch"):
        LoadShape(rate=5.0, prefetch=1)
    with pytest.raises(ConfigError, match="there are no pictures"):
        next(measure_rows(steady(Time()), "x", [], [LoadShape()], Plan()))


def test_thread_counts_are_set_for_each_row() -> None:
    time, before = Time(), torch.get_num_threads()
    shapes = [LoadShape(threads=2), LoadShape(threads=1)]
    try:
        rows = list(measure_rows(steady(time), "x", PICTURES, shapes, Plan(rounds=1), instruments=instruments(time)))
    finally:
        torch.set_num_threads(before)
    assert [row.threads for row in rows] == [2, 1]


def test_settings_are_kept_apart_by_a_pause() -> None:
    time = Time()
    rows = measure_rows(
        steady(time), "x", PICTURES, [LoadShape(), LoadShape(batch=2)], Plan(cool_down_s=500), instruments=instruments(time)
    )
    next(rows)
    began = time.seconds
    next(rows)
    assert time.seconds - began >= 500


def test_numbers_that_are_not_finite_are_no_measurement() -> None:
    boxes = np.array([[0, 0, np.inf, 1]], np.float32)
    bad = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int64), LabelSpace.contiguous(["a"]), (9, 9), source="a.jpg")
    with pytest.raises(ConfigError, match=r"^a\.jpg: detections are not finite; try float32, or check the weights$"):
        check([bad])


def test_on_cuda_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        waited: list[str] = []

        def synchronize(self, device: str) -> None:
            self.waited.append(device)

    monkeypatch.setattr(runner, "cuda_of", lambda device: Cuda() if device.startswith("cuda") else None)
    tools = Instruments(now=lambda: 7.0)
    assert tools.on("cpu")() == 7.0
    assert Cuda.waited == []
    assert tools.on("cuda:1")() == 7.0
    assert Cuda.waited == ["cuda:1"]


def test_forgetting_files_leaves_them_whole(tmp_path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"x" * 10_000)
    forget([str(file), np.zeros(3)])
    assert file.read_bytes() == b"x" * 10_000

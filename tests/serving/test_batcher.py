"""Which pictures run together, who is dropped, and who is refused; the clock is the test's."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapidetr.serving.batcher import Batcher, Costs
from rapidetr.serving.limits import Refusal


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Doubler:
    """Doubles; a batch of n takes `seconds[n]` on the clock."""

    def __init__(self, clock: Clock, seconds: dict[int, float] | None = None) -> None:
        self.costs, self.clock, self.seen = Costs(), clock, list[list[Any]]()
        for size, s in (seconds or {}).items():
            self.costs.learn(size, s)
        self.seconds = seconds or {}

    def run(self, inputs: list[Any]) -> list[Any]:
        self.seen.append(inputs)
        self.clock.time += self.seconds.get(len(inputs), 0.0)
        return [2 * i for i in inputs]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, **options: Any) -> Batcher:
    return Batcher(**{"max_queue": 64, "max_batch": 8, "now": clock, **options})


GAIN = {1: 0.010, 2: 0.012, 4: 0.016, 8: 0.024}  # batches pay
NO_GAIN = {1: 0.010, 2: 0.020}


def test_a_lone_picture_runs_at_once_and_batches_gather_behind_it(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, GAIN)
    first = batcher.submit(runner, 1, 200)
    assert batcher.step(0)
    assert first.result(0) == (2, 0.0)
    later = [batcher.submit(runner, i, 200) for i in range(13)]
    while batcher.step(0):
        pass
    assert [len(batch) for batch in runner.seen] == [1, 8, 4, 1]
    assert [future.result(0)[0] for future in later] == [2 * i for i in range(13)]
    assert [i for batch in runner.seen[1:] for i in batch] == list(range(13))  # the order in which they came
    assert later[8].result(0)[1] == pytest.approx(0.024)  # it waited for one batch of eight
    assert not batcher.step(0)


def test_without_a_gain_pictures_go_one_by_one(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, NO_GAIN)
    for i in range(4):
        batcher.submit(runner, i, 200)
    while batcher.step(0):
        pass
    assert runner.seen == [[0], [1], [2], [3]]


def test_the_budget_bounds_a_batch_until_it_is_spent(clock: Clock) -> None:
    costs = Doubler(clock, GAIN).costs
    assert costs.choose(8, 0.0, None) == 8
    assert costs.choose(8, 0.0, 0.020) == 4
    assert costs.choose(8, 0.005, 0.020) == 2
    assert costs.choose(8, 0.009, 0.020) == 1
    assert costs.choose(8, 0.019, 0.020) == 8  # late anyway: the best rate ends it soonest
    assert costs.choose(3, 0.0, None) == 2  # sizes that were never tried are not taken
    assert Costs().choose(5, 0.0, None) == 1


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(1e-4, 10), min_size=1),
    st.integers(1, 40),
    st.floats(0, 5),
    st.none() | st.floats(1e-3, 5),
)
def test_what_is_chosen_waits_is_known_and_in_time_if_anything_is(
    seconds: dict[int, float], waiting: int, waited: float, budget: float | None
) -> None:
    costs = Costs()
    costs.seconds = seconds | {1: seconds.get(1, 0.01)}
    size = costs.choose(waiting, waited, budget)
    assert size in costs.seconds
    assert 1 <= size <= waiting
    in_time = [n for n, s in costs.seconds.items() if n <= waiting and (budget is None or waited + s <= budget)]
    assert size in in_time or not in_time
    best = max(n / costs.seconds[n] for n in in_time or [m for m in costs.seconds if m <= waiting])
    assert size / costs.seconds[size] >= 0.95 * best


def test_costs_follow_what_is_measured(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, {1: 0.010})
    runner.seconds = {1: 0.030}
    for _ in range(30):
        batcher.submit(runner, 0, 1e9)
        batcher.step(0)
    assert runner.costs.seconds[1] == pytest.approx(0.030, rel=0.01)  # 0.8**30 of the distance is left


def test_late_ones_are_dropped_before_they_run(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, {1: 0.5})
    early, late = batcher.submit(runner, 1, 101.0), batcher.submit(runner, 2, 100.4)
    assert batcher.step(0)
    clock.time += 0.1
    assert not batcher.step(0)
    assert early.result(0)[0] == 2
    assert runner.seen == [[1]]
    with pytest.raises(Refusal, match=r"its deadline passed after 0\.600 s in the queue") as caught:
        late.result(0)
    assert (caught.value.status, caught.value.kind) == (504, "DeadlinePassed")


def test_cancelled_ones_do_not_run(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, GAIN)
    futures = [batcher.submit(runner, i, 200) for i in range(3)]
    futures[0].cancel()
    batcher.step(0)
    assert runner.seen == [[1, 2]]


def test_models_never_share_a_batch(clock: Clock) -> None:
    batcher, old, new = make(clock), Doubler(clock, GAIN), Doubler(clock, GAIN)
    for i, runner in enumerate([old, old, new, new, old]):
        batcher.submit(runner, i, 200)
    while batcher.step(0):
        pass
    assert (old.seen, new.seen) == ([[0, 1], [4]], [[2, 3]])


def test_what_goes_wrong_belongs_to_those_who_asked(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, GAIN)
    futures = [batcher.submit(runner, i, 200) for i in (None, 1)]
    batcher.step(0)
    for future in futures:
        with pytest.raises(TypeError):
            future.result(0)
    good = batcher.submit(runner, 4, 200)
    batcher.step(0)
    assert good.result(0)[0] == 8


def test_places_are_counted_and_given_back(clock: Clock) -> None:
    batcher, runner = make(clock, max_queue=8), Doubler(clock, {1: 0.5})
    with batcher.admit(5, 1e9, runner), batcher.admit(3, 1e9, runner):
        with (
            pytest.raises(Refusal, match="8 of 8 places are taken, 1 more were asked for; try again in 4 s") as caught,
            batcher.admit(1, 1e9, runner),
        ):
            pass
        assert (caught.value.status, caught.value.retry_after_s) == (503, 4)
    assert batcher.held == 0
    with pytest.raises(KeyError), batcher.admit(8, 1e9, runner):
        raise KeyError
    with batcher.admit(8, 1e9, runner):
        assert batcher.held == 8


@pytest.mark.parametrize(("streams", "kept"), [(1, 3), (2, 6)])
def test_who_would_be_late_is_refused_at_once(clock: Clock, streams: int, kept: int) -> None:
    batcher, runner = make(clock, streams=streams), Doubler(clock, {1: 1.0})
    with batcher.admit(kept - 1, 1e9, runner):
        with batcher.admit(1, clock.time + 3.0, runner):
            pass
        with pytest.raises(Refusal, match="would come after its deadline") as caught, batcher.admit(2, clock.time + 3.0, runner):
            pass
    assert caught.value.status == 503


def test_closing_answers_what_was_admitted(clock: Clock) -> None:
    batcher, runner = make(clock), Doubler(clock, GAIN)
    thread = threading.Thread(target=batcher.work)
    thread.start()
    with batcher.admit(1, 1e9, runner):
        batcher.close()
        with pytest.raises(Refusal, match="going down"), batcher.admit(1, 1e9, runner):
            pass
        assert batcher.submit(runner, 21, 1e9).result(20)[0] == 42  # decoded only after the door was closed
    thread.join(20)
    assert not thread.is_alive()

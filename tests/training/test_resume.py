"""The law of resuming: killed anywhere and started again, a run ends bit-equal to one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import DETECT, SEGMENT, assert_same_end, lines, run, state_of, write_scenes

from rapidetr.core.errors import CheckpointError, ConfigError, RapidetrError
from rapidetr.training import step as step_module
from rapidetr.training.step import Learner, Outcome

STAGES = "head:1,all:1@0.5"


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation run, whose mask points come from torch's generator, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(scenes, folder, model=SEGMENT, stages=STAGES)
    return folder


def kill_at(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Learner.step dies instead of taking step number `steps` of this session."""
    original, taken = Learner.step, []

    def step(self: Learner, *args: object) -> Outcome:
        if len(taken) == steps:
            raise Killed
        taken.append(1)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module.Learner, "step", step)


# saved after every step, or at the ends of epochs alone; killed in the first epoch, in the second, and in both
@pytest.mark.parametrize(("minutes", "kills"), [(0, (3,)), slow(1e9, (3,)), slow(1e9, (7,)), slow(0, (2, 5))])
def test_killed_and_resumed_is_uninterrupted(
    scenes: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, kills: tuple[int, ...]
) -> None:
    for steps in kills:
        with monkeypatch.context() as patch:
            kill_at(patch, steps)
            with pytest.raises(Killed):
                run(scenes, tmp_path / "run", model=SEGMENT, stages=STAGES, save_minutes=minutes)
    run(scenes, tmp_path / "run", model=SEGMENT, stages=STAGES, save_minutes=minutes)
    assert_same_end(whole, tmp_path / "run")


CHILD = """
import os, signal, sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import torch
torch.set_num_threads(1)
import small_runs
from rapidetr.training.step import Learner
original, taken = Learner.step, []
def step(self, *args):
    outcome = original(self, *args)
    taken.append(1)
    if len(taken) == int(os.environ["KILL_AFTER"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome
Learner.step = step
small_runs.run(Path(sys.argv[1]), Path(sys.argv[2]), model=small_runs.SEGMENT, stages="head:1,all:1@0.5", save_minutes=0)
"""


@pytest.mark.slow
def test_sigkill_at_a_random_step(scenes: Path, whole: Path, tmp_path: Path, golden: Path) -> None:
    after = random.Random(os.getpid()).randint(1, 9)
    paths = [str(Path(__file__).parent), str(golden)]
    command = [sys.executable, "-c", CHILD, str(scenes), str(tmp_path / "run"), *paths]
    child = subprocess.run(command, env={**os.environ, "KILL_AFTER": str(after)}, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    run(scenes, tmp_path / "run", model=SEGMENT, stages=STAGES, save_minutes=0)
    assert_same_end(whole, tmp_path / "run")


def test_a_crash_while_saving_keeps_the_old_state(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            run(scenes, folder, save_minutes=0)
    before = state_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(scenes, folder, save_minutes=0)
    after = state_of(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.name for p in (folder / "last").iterdir()] == ["state.safetensors"]


def test_frozen_parameters_stay_bit_equal(whole: Path) -> None:
    rows = lines(whole)
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[1]["lr"] == pytest.approx(0.5 * rows[0]["lr"])


def test_a_frozen_encoder_is_untouched_in_weights_average_and_optimizer(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "run", stages="head:1")
    from safetensors.torch import load_file

    start, end = load_file(tmp_path / "run" / "baseline.safetensors"), state_of(tmp_path / "run")
    for name, tensor in start.items():
        frozen = name.startswith("vit.")
        assert torch.equal(tensor, end[f"model/{name}"]) == frozen, name
        assert torch.equal(tensor, end[f"average/{name}"]) == frozen, name
    assert not any(name.split("/")[-1].startswith("vit.") for name in end if name.startswith("optimizer/"))


def test_a_finished_run_says_so_and_another_recipe_is_refused(scenes: Path, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", []
    first = run(scenes, folder, epochs=1)
    from rapidetr.training.run import train

    usual = {"epochs": 1, "batch_size": 2, "weights": "random", "rates": "uniform", "watch": "ema", "device": "cpu"}
    again = train(scenes, model=DETECT, out=folder, say=said.append, **usual)
    assert again.record == first.record
    assert said[-1].startswith(f"{folder}: this run is finished (1 epochs, AP ")
    with pytest.raises(ConfigError) as problem:
        run(scenes, folder, epochs=3, lr=1e-3)
    expected = "was begun with another recipe: epochs 1 -> 3, lr 0.0001 -> 0.001; go on with the old one, or use fresh=True"
    assert str(problem.value) == f"{folder}: {expected}"
    run(scenes, folder, epochs=1, lr=1e-3, fresh=True)
    assert (tmp_path / "run.bak-1" / "record.json").exists()


def test_foreign_folders_and_damaged_states_are_refused(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r": holds other files and no run; name an empty or a new folder$"):
        run(scenes, tmp_path)
    with pytest.raises(ConfigError, match=r": holds other files and no run; "):
        run(scenes, tmp_path, fresh=True)
    assert (tmp_path / "note.txt").exists()  # only a run is moved aside
    folder = tmp_path / "run"
    run(scenes, folder, epochs=1)
    (folder / "record.json").unlink()
    (folder / "last" / "state.safetensors").write_bytes(b"damaged" * 9)
    with pytest.raises(CheckpointError, match=r"state.safetensors: is no state of this run .*; start anew with fresh=True$"):
        run(scenes, folder, epochs=1)


def test_a_start_that_failed_does_not_bind_the_folder(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^classification loss is 'bce'; expected one of ia-bce, focal, varifocal, position$"):
        run(scenes, tmp_path / "run", classification="bce")
    with pytest.raises(ConfigError, match=r"^stages: unknown part 'neck'"):
        run(scenes, tmp_path / "run", stages="neck:1")
    assert run(scenes, tmp_path / "run", epochs=1, seed=4).record["recipe"]["seed"] == 4


def test_too_many_bad_steps_stop_the_run_and_keep_the_last_good_state(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Learner.step

    def step(self: Learner, batches: list, factor: float) -> Outcome:
        return good(self, [batch._replace(pixels=batch.pixels * float("nan")) for batch in batches], factor)

    monkeypatch.setattr(step_module.Learner, "step", step)
    folder = tmp_path / "run"
    with pytest.raises(RapidetrError) as problem:
        run(scenes, folder, max_skipped=2)
    text = str(problem.value)
    assert text.startswith("3 steps had a loss that is not a number (max_skipped 2), the last one with ")
    assert text.endswith(
        f"; the last good state is {folder / 'last' / 'state.safetensors'}; look at these pictures, or start anew with a lower lr"
    )
    assert ".jpg" in text
    assert all(t.isfinite().all() for t in state_of(folder).values() if t.is_floating_point())

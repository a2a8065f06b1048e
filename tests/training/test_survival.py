"""A run outlives what goes wrong around it: networks that answer with no numbers, kills between two files, other devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import lines, run, write_scenes
from test_steps import make_batch, make_learner

import rapidetr.training.loop as loop
from rapidetr.checkpoints.file import open_checkpoint
from rapidetr.core.errors import ConfigError, NotFinite, RapidetrError
from rapidetr.data.read import read_dataset
from rapidetr.training.distributed import World, join
from rapidetr.training.precision import fast_products
from rapidetr.training.recipe import Recipe
from rapidetr.training.state import Progress, load_state, save_state


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", train=2, valid=1)


class Killed(BaseException):
    """Nothing catches it."""


def fake_scores(monkeypatch: pytest.MonkeyPatch, by_epoch: dict[str, float]) -> None:
    """AP as told, by the name that `score` is called with; 0 for all else."""

    def score(course: loop.Course, network: Any, what: str) -> dict[str, Any]:
        return {"AP": by_epoch.get(what, 0.0), "per_class": {}}

    monkeypatch.setattr(loop, "score", score)


def test_the_best_weights_are_those_of_the_record_after_a_kill(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the new best weights and the state that knows of them; the epoch comes out worse when it is done again."""
    folder = tmp_path / "run"
    saved = loop.save

    def die(course: loop.Course, learner: Any, progress: Progress) -> None:
        if progress.epoch == 2:
            raise Killed
        saved(course, learner, progress)

    with monkeypatch.context() as patch:
        fake_scores(patch, {"epoch 0, ema": 0.5, "epoch 1, ema": 0.9})
        patch.setattr(loop, "save", die)
        with pytest.raises(Killed):
            run(scenes, folder)
    assert open_checkpoint(folder / "best.safetensors").provenance["AP"] == 0.5
    with monkeypatch.context() as patch:
        fake_scores(patch, {"epoch 1, ema": 0.4})
        record = run(scenes, folder).record
    assert (record["best"]["epoch"], record["best"]["AP"]) == (0, 0.5)
    kept = open_checkpoint(folder / "best.safetensors").provenance
    assert (kept["epoch"], kept["AP"]) == (0, 0.5)
    assert [p.name for p in (folder / "last").iterdir()] == ["state.safetensors"]


def test_the_best_weights_arrive_after_a_kill_behind_the_state(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    settle = loop.settle_best

    def die(course: loop.Course, progress: Progress) -> None:
        if progress.epoch == 1:
            raise Killed
        settle(course, progress)

    fake_scores(monkeypatch, {"epoch 0, ema": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "settle_best", die)
        with pytest.raises(Killed):
            run(scenes, folder)
    assert not (folder / "best.safetensors").exists()
    assert run(scenes, folder).record["best"]["epoch"] == 0
    assert open_checkpoint(folder / "best.safetensors").provenance["AP"] == 0.5


def spoil(monkeypatch: pytest.MonkeyPatch, bad: tuple[str, ...]) -> None:
    """Those evaluations, by the name that `score` is called with, meet a network whose answers are no numbers."""
    real, now = loop.score, [""]

    def score(course: loop.Course, network: Any, what: str) -> dict[str, Any] | None:
        now[0] = what
        return real(course, network, what)

    find = loop.find

    def found(*args: Any, **options: Any) -> Any:
        if any(now[0].startswith(name) for name in bad):
            raise NotFinite("the network returned values that are not finite")
        return find(*args, **options)

    monkeypatch.setattr(loop, "score", score)
    monkeypatch.setattr(loop, "find", found)


def test_weights_that_answer_with_no_numbers_do_not_end_a_run(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, ("epoch 0", "epoch 1, raw"))
    record = run(scenes, tmp_path / "run", epochs=3, watch="max", report=True).record
    rows = lines(tmp_path / "run")
    assert [sorted({"raw", "ema"} & set(row)) for row in rows] == [[], ["ema"], ["ema", "raw"]]
    assert record["best"]["epoch"] in (1, 2)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_network_that_really_answers_with_no_numbers_is_not_scored(scenes: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "run"
    run(scenes, folder, epochs=1)
    start = open_checkpoint(folder / "best.safetensors")
    network = start.network()
    with torch.no_grad():
        network.class_head.bias.fill_(float("nan"))
    course = type("Course", (), {"valid": read_dataset(scenes, "valid"), "start": start, "world": World(), "device": "cpu",
                                 "recipe": Recipe(), "say": staticmethod(said.append)})  # fmt: skip
    assert loop.score(course, network, "epoch 7, raw") is None
    assert said == ["epoch 7, raw: not scored, the network returned values that are not finite; try float32, or check the weights"]


def test_without_any_score_there_is_no_best_and_an_unusable_start_is_refused(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, ("epoch",))
        with pytest.raises(RapidetrError, match=r"run: no evaluation gave numbers, so there is no best; start anew with a lower lr"):
            run(scenes, tmp_path / "run")
    with monkeypatch.context() as patch:
        spoil(patch, ("baseline",))
        with pytest.raises(ConfigError, match=r"other: the starting model does not answer with numbers; look at its weights$"):
            run(scenes, tmp_path / "other")


def test_what_a_killed_writer_left_is_removed(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(scenes, folder, epochs=1)
    (folder / "record.json").unlink()
    for part in (folder / ".best.safetensors.4242.part", folder / "last" / ".state.safetensors.4242.part"):
        part.write_bytes(b"half")
    run(scenes, folder, epochs=1)
    assert list(folder.rglob(".*.part")) == []


def test_a_state_without_loss_scaling_goes_on_with_it(tmp_path: Path) -> None:
    """A run that began on a CPU, or in bf16, may go on where `auto` is fp16."""
    plain = make_learner(torch.float32)
    plain.step([make_batch(dtype=torch.float32)], 1.0)
    save_state(tmp_path / "state.safetensors", plain, Progress(step=1))
    scaled = make_learner(torch.float32, precision="float16")
    assert scaled.scaler.is_enabled()
    assert load_state(tmp_path / "state.safetensors", scaled).step == 1
    assert scaled.scaler.get_scale() > 1


def test_generators_of_a_device_come_back_to_that_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(8, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda bits, device: set_to.append(device))
    learner = make_learner(torch.float32)
    learner.device = "cuda:1"
    save_state(tmp_path / "state.safetensors", learner, Progress())
    load_state(tmp_path / "state.safetensors", learner)
    learner.device = "cpu"  # the same state, on a machine without CUDA
    load_state(tmp_path / "state.safetensors", learner)
    assert set_to == ["cuda:1"]


def test_one_device_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"^device is 'cuda:0' for all 2 processes; expected cuda, of which each takes its own$"):
        join("cuda:0").__enter__()


def test_a_device_with_an_index_is_the_current_one_while_a_run_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []

    @contextlib.contextmanager
    def device(name: str) -> Iterator[None]:
        current.append(name)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    with join("cuda:1") as (world, place):
        assert (world.size, place, current) == (1, "cuda:1", ["cuda:1"])
    assert current == []


def test_products_are_fast_on_cuda_alone_and_only_while_learning() -> None:
    before = torch.get_float32_matmul_precision()
    with fast_products("cpu"):
        assert torch.get_float32_matmul_precision() == before
    with contextlib.suppress(Killed), fast_products("cuda:0"):
        assert torch.get_float32_matmul_precision() == "high"
        raise Killed
    assert torch.get_float32_matmul_precision() == before

"""One step at a time: bad pictures, accumulation, precision, several processes; and that learning learns."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cases
import parity_fill
import pytest
import torch
from small_runs import DETECT, lines, run, write_scenes

from rapidetr.data.batches import TrainBatch, Truth
from rapidetr.data.read import read_dataset
from rapidetr.training.distributed import World
from rapidetr.training.recipe import Recipe
from rapidetr.training.stages import parse_stages
from rapidetr.training.step import Learner

PICTURES = 4


def make_learner(dtype: torch.dtype = torch.float64, world: World | None = None, case: str = "tiny_det", **recipe: object) -> Learner:
    network = cases.network(case).to(dtype)
    learner = Learner(network, Recipe(**{"rates": "uniform", **recipe}), "cpu", world or World())
    learner.enter(parse_stages("", 1, network.config.vit_depth)[0])
    return learner


def make_batch(begin: int = 0, end: int = PICTURES, dtype: torch.dtype = torch.float64) -> TrainBatch:
    """Pictures with 3, 0, 2 and 5 objects."""
    counts = (3, 0, 2, 5)
    drawn = [parity_fill.targets(i, counts[i % 4], DETECT.class_rows - 1, 64, 64) for i in range(begin, end)]
    truths = tuple(Truth(torch.from_numpy(t["labels"]), torch.from_numpy(t["boxes"]), None) for t in drawn)
    pixels = torch.stack([torch.from_numpy(parity_fill.image(i, 64, 64)) for i in range(begin, end)]).to(dtype)
    return TrainBatch(pixels, truths, tuple(f"picture{i}.jpg" for i in range(begin, end)))


def weights(learner: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learner.network.parameters()]


def test_a_bad_picture_is_named_and_changes_nothing() -> None:
    learner = make_learner()
    learner.step([make_batch()], 1.0)
    before, updates = weights(learner), learner.average.updates
    moments = {i: {k: v.clone() for k, v in s.items()} for i, s in learner.optimizer.state_dict()["state"].items()}
    batch = make_batch()
    batch.pixels[2, 0, 0, 0] = float("nan")
    outcome = learner.step([make_batch(), batch], 1.0)
    assert (outcome.skipped, outcome.culprits) == (True, ("picture2.jpg",))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    assert learner.average.updates == updates
    assert all(torch.equal(v, moments[i][k]) for i, s in learner.optimizer.state_dict()["state"].items() for k, v in s.items())
    assert not learner.step([make_batch()], 1.0).skipped


def test_bad_boxes_are_named_too() -> None:
    batch = make_batch()
    batch.targets[0].boxes[1, 2] = float("inf")
    assert make_learner().step([batch], 1.0).culprits == ("picture0.jpg",)


def test_accumulated_halves_weigh_the_same() -> None:
    whole, halves = make_learner(), make_learner()
    for _ in range(2):
        a = whole.step([make_batch()], 1.0)
        b = halves.step([make_batch(), make_batch()], 1.0)
    torch.testing.assert_close(a.losses, b.losses, rtol=1e-12, atol=0)  # order of summation in fp64
    for one, other in zip(weights(whole), weights(halves), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_checkpointing_changes_no_number() -> None:
    ends = []
    for checkpointing in (False, True):
        learner = make_learner(checkpointing=checkpointing)
        ends.append([learner.step([make_batch()], 1.0).losses for _ in range(2)][-1])
    assert torch.equal(*ends)


def test_bfloat16_learns_about_the_same() -> None:
    exact, half = make_learner(torch.float32), make_learner(torch.float32, precision="bfloat16")
    batch = make_batch(dtype=torch.float32)
    for _ in range(3):
        expected, found = exact.step([batch], 1.0), half.step([batch], 1.0)
    assert half.half == torch.bfloat16
    assert float(found.losses[0]) == pytest.approx(float(expected.losses[0]), rel=0.05)  # three digits in, top-k order may flip


def test_fp16_that_runs_over_lowers_its_scale_and_accuses_nobody() -> None:
    learner = make_learner(torch.float32, precision="float16")
    batch, before = make_batch(dtype=torch.float32), weights(learner)
    first = learner.step([batch], 1.0)
    assert (first.skipped, first.culprits, learner.scaler.get_scale()) == (True, (), 2.0**15)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    for _ in range(16):
        outcome = learner.step([batch], 1.0)
        assert outcome.culprits == ()
        if not outcome.skipped:
            break
    assert not outcome.skipped
    assert learner.average.updates == 1


def test_a_rate_of_zero_learns_nothing_but_the_average_moves_on() -> None:
    learner = make_learner()
    before = weights(learner)
    learner.step([make_batch()], 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    assert learner.average.updates == 1


CHILD = """
import os, sys
sys.path[:0] = sys.argv[2:]
import torch
torch.set_num_threads(1)
import test_steps
from rapidetr.training.distributed import join
with join("cpu") as (world, device):
    for dtype in (torch.float64, torch.float32):
        losses, learner = test_steps.three_steps(dtype, world)
        bad = test_steps.make_batch(2 * world.rank, 2 * world.rank + 2, dtype)
        if world.rank:
            bad.pixels[1] = float("nan")
        culprits = learner.step([bad], 1.0).culprits
        if world.first:
            torch.save([losses, test_steps.weights(learner), culprits], f"{sys.argv[1]}/{dtype}.pt")
"""


def three_steps(dtype: torch.dtype, world: World) -> tuple[torch.Tensor, Learner]:
    """Losses [3, terms], meant over the processes, of three accumulated steps of this process's part of eight pictures."""
    learner = make_learner(dtype, world)
    part, losses = PICTURES // world.size, []
    for _ in range(3):
        begins = [world.rank * part, PICTURES + world.rank * part]
        outcome = learner.step([make_batch(begin, begin + part, dtype) for begin in begins], 1.0)
        losses.append(world.mean_of(outcome.losses))
    return torch.stack(losses), learner


def start_two(code: str, arguments: list[str]) -> None:
    """Two processes as torchrun would start them, on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments, str(Path(__file__).parent), str(Path(cases.__file__).parent)]
    started = [
        subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for child in started:
        _, problem = child.communicate(timeout=300)
        assert child.returncode == 0, problem


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_global_batch(tmp_path: Path) -> None:
    start_two(CHILD, [str(tmp_path)])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        losses, params, culprits = torch.load(tmp_path / f"{dtype}.pt")
        expected, learner = three_steps(dtype, World())
        torch.testing.assert_close(losses, expected, rtol=tolerance, atol=0)
        if dtype == torch.float64:
            for one, other in zip(params, weights(learner), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        assert culprits == ("picture3.jpg",)  # of the second process


RUN = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import torch
torch.set_num_threads(1)
import small_runs
small_runs.run(Path(sys.argv[1]), Path(sys.argv[2]), epochs=1, save_minutes=0)
"""


@pytest.mark.slow
def test_a_run_on_two_processes(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data")
    start_two(RUN, [str(data), str(tmp_path / "two")])
    one = run(data, tmp_path / "one", epochs=1)
    (apart,), (alone,) = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert apart["loss"] == pytest.approx(alone["loss"], rel=1e-4)  # fp32, five steps
    assert one.record["environment"]["processes"] == 1
    assert "ema" in apart


@pytest.mark.slow
def test_two_pictures_are_learned_by_heart(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", train=2, valid=1, seed=11)
    seen = read_dataset(data, "train")
    options = {"lr": 2e-3, "augment": "none", "multi_scale": False, "evaluate_every": 50, "schedule": "cosine", "warmup_epochs": 2}
    small = replace(DETECT, vit_depth=3, stages=(1, 2, 3), windows=1, decoder_ffn=256)
    learned = run(seen, tmp_path / "run", model=small, valid=seen, epochs=50, **options)
    assert learned.record["baseline"]["AP"] < 0.1
    assert learned.record["best"]["AP"] >= 0.9

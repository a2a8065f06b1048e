"""Where a run starts and what it leaves: class rows by name, sizes, groups, records, splits."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import pytest
import torch
from small_runs import DETECT, SEGMENT, lines, run, state_of, write_scenes

import rapidetr.training.loop as loop
from rapidetr.checkpoints.file import open_checkpoint, save_checkpoint
from rapidetr.core.errors import ConfigError, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.read import read_dataset
from rapidetr.data.samples import Sample
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load
from rapidetr.training.recipe import Recipe
from rapidetr.training.records import deltas, flatten
from rapidetr.training.run import train
from rapidetr.training.start import make_start, map_classes
from rapidetr.training.step import Learner

OLD = LabelSpace(("cat", "dog", "cow"), (1, 5, 9), (1, 5, 6), 7)  # rows with gaps, as COCO heads have


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


def test_class_rows_follow_their_names() -> None:
    state = cases.network("tiny_det").state_dict()
    new = LabelSpace.contiguous(["dog", "owl", "cat"])
    mapped, notes = map_classes(state, OLD, new, seed=3)
    assert notes == ["class rows kept by name: 2 (dog, cat)", "class rows started fresh: 1 (owl)"]
    for head in ("class_head", "proposals.groups.0.classes", "proposals.groups.2.classes"):
        assert torch.equal(mapped[f"{head}.weight"][[0, 2]], state[f"{head}.weight"][[5, 1]])
        assert torch.equal(mapped[f"{head}.bias"][[0, 2]], state[f"{head}.bias"][[5, 1]])
        assert mapped[f"{head}.bias"][[1, 3]].tolist() == pytest.approx([-math.log(99)] * 2)
        assert torch.equal(mapped[f"{head}.weight"][[1, 3]], mapped["class_head.weight"][[1, 3]])
        assert mapped[f"{head}.weight"][[1, 3]].abs().max() <= 1 / math.sqrt(DETECT.width)
    assert all(torch.equal(mapped[n], t) for n, t in state.items() if "class" not in n)
    assert map_classes(state, OLD, new, seed=3)[0]["class_head.weight"].equal(mapped["class_head.weight"])


def test_the_same_classes_keep_the_head() -> None:
    state = cases.network("tiny_det").state_dict()
    assert map_classes(state, OLD, replace(OLD, dataset_ids=(7, 8, 9)), 0) == (state, ["class head kept: the classes are the same"])


def test_fewer_groups_and_another_size() -> None:
    detector = Detector.from_module(cases.network("tiny_det"), LabelSpace.contiguous("abcdef"))
    start = make_start(detector, LabelSpace.contiguous("abcdef"), Recipe(groups=2, size_hw=(96, 64)))
    assert (start.config.groups, start.config.size_hw, len(start.state["query_content"])) == (2, (96, 64), 2 * DETECT.queries)
    rows = detector.model.query_content.unflatten(0, (3, DETECT.queries))[:2].flatten(0, 1)
    assert torch.equal(start.state["query_content"], rows)


def test_a_configuration_needs_random_weights() -> None:
    with pytest.raises(ConfigError, match=r"with weights='pretrained'; a configuration goes with weights='random'$"):
        make_start(DETECT, LabelSpace.contiguous("ab"), Recipe())


@pytest.mark.slow
def test_a_run_from_a_run_keeps_its_classes_and_records_the_gain(scenes: Path, tmp_path: Path) -> None:
    first = run(scenes, tmp_path / "a", epochs=1)
    second = train(scenes, model=tmp_path / "a" / "best.safetensors", out=tmp_path / "b", epochs=2, batch_size=2, watch="max", device="cpu")
    record = json.loads((tmp_path / "b" / "record.json").read_text())
    assert record == second.record
    assert record["baseline"]["AP"] == pytest.approx(first.record["best"]["AP"])
    assert record["gain"]["AP"] == record["best"]["AP"] - record["baseline"]["AP"]
    assert set(record["gain"]["per_class"]) == set(first.best.class_names)
    assert second.best.labels == first.best.labels
    assert second.best.labels.dataset_ids == read_dataset(scenes).labels.dataset_ids
    assert second.best.preprocessing.predict_filter == "bilinear-antialias"
    baseline = load(tmp_path / "b" / "baseline.safetensors").model.state_dict()
    assert all(torch.equal(t, baseline[n]) for n, t in first.best.model.state_dict().items())
    rows = lines(tmp_path / "b")
    with (tmp_path / "b" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [{k: str(v) for k, v in flatten(row).items() if v is not None} for row in rows] == [
        {k: v for k, v in row.items() if v} for row in table
    ]
    assert rows[0]["raw"]["AP"] <= record["best"]["AP"]


@pytest.mark.slow
def test_best_is_what_was_scored(scenes: Path, tmp_path: Path) -> None:
    """The shipped file, loaded from disk, has the AP that the record says."""
    from rapidetr.evaluation.evaluate import evaluate

    done = run(scenes, tmp_path / "run", model=SEGMENT, epochs=2, lr=1e-3)
    found = evaluate(done.best, read_dataset(scenes, "valid"))
    assert found.masks is not None
    assert found.masks.metrics["AP"] == done.record["best"]["AP"]
    assert found.boxes.metrics["AP"] == done.record["best"]["box_AP"]


def test_without_a_valid_split_the_last_weights_are_the_best(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes / "train", tmp_path / "data" / "train")
    done = run(tmp_path / "data", tmp_path / "run", epochs=2)
    assert (done.record["best"]["epoch"], done.record["baseline"], done.record["gain"]) == (1, {}, None)
    assert done.record["best"]["AP"] is None
    assert open_checkpoint(tmp_path / "run" / "best.safetensors").provenance["AP"] is None


def test_any_map_style_dataset(tmp_path: Path) -> None:
    class Items:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[np.ndarray, dict]:
            pixels = np.full((80, 90, 3), 40 * index, np.uint8)
            return pixels, {"boxes": np.array([[10.0, 10, 50, 60]]), "labels": np.array([index % 2])}

    done = run(Items(), tmp_path / "run", epochs=1, labels=LabelSpace.contiguous(["dark", "light"]))
    assert done.best.class_names == ["dark", "light"]
    with pytest.raises(ConfigError, match=r"^labels are missing: "):
        run(Items(), tmp_path / "other", epochs=1)
    labels = LabelSpace.contiguous(["dark", "light"])
    with pytest.raises(ConfigError, match=r"^valid is of type Items; expected a Dataset, such as read_dataset returns$"):
        run(Items(), tmp_path / "other", epochs=1, labels=labels, valid=Items())
    with pytest.raises(ConfigError, match=r"^balance and automatic class weights count objects; expected a Dataset, not a Items$"):
        run(Items(), tmp_path / "other", epochs=1, labels=labels, balance=0.5)
    assert not (tmp_path / "other").exists()


class Blacken:
    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return replace(sample, pixels=np.zeros_like(sample.pixels))


def test_a_callable_of_the_user_comes_last_and_is_part_of_the_run(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    original = Learner.fetch
    monkeypatch.setattr(Learner, "fetch", lambda self, batch: (seen.append(batch.pixels), original(self, batch))[1])
    run(scenes, tmp_path / "run", epochs=1, custom=Blacken(), multi_scale=False)
    assert len(seen) == 5
    assert all(pixels.amax(dim=(0, 2, 3)).equal(pixels.amin(dim=(0, 2, 3))) for pixels in seen)  # one color: black
    with pytest.raises(ConfigError, match=r"test_start\.Blacken"):
        run(scenes, tmp_path / "run", epochs=1, multi_scale=False)


def test_last_and_averaged_weights_are_kept_too(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "run", epochs=1)
    state = state_of(tmp_path / "run")
    for name, prefix in (("last", "model/"), ("ema", "average/")):
        checkpoint = open_checkpoint(tmp_path / "run" / f"{name}.safetensors")
        assert all(torch.equal(tensor, state[prefix + key]) for key, tensor in checkpoint.state.items())
        assert checkpoint.provenance["epoch"] == 0


def test_class_weights_by_number_or_by_count(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^2 class weights; expected one for each of \d+ classes: "):
        run(scenes, tmp_path / "run", epochs=1, class_weights=(1.0, 2.0))
    counts = read_dataset(scenes).class_counts
    record = run(scenes, tmp_path / "run", epochs=1, class_weights="auto").record
    weights = np.array(record["recipe"]["class_weights"])
    assert (weights[counts == 0] == 1).all()
    ratio = weights[counts > 0] * np.sqrt(counts[counts > 0])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)  # four digits are kept
    assert len(set(weights)) > 1


def test_masks_are_not_learned_from_boxes(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    file = tmp_path / "data" / "train" / "_annotations.coco.json"
    told = json.loads(file.read_text())
    for annotation in told["annotations"]:
        annotation["segmentation"] = []
    file.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"^the train split has boxes alone; masks need outlines: add them, or train a detection model$"):
        run(tmp_path / "data", tmp_path / "run", model=SEGMENT)


def test_a_run_in_the_present_folder(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(scenes, Path("."), epochs=1).best.size_hw == (64, 64)


def test_stopping_early_is_recorded(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.2, 0.3, 0.9])
    monkeypatch.setattr(loop, "score", lambda *a: {"AP": next(scores), "per_class": {}})
    done = run(scenes, tmp_path / "run", epochs=9, patience=2)
    assert (done.record["epochs"], done.record["stopped_early"]) == (3, True)
    assert done.record["best"] == {"epoch": 0, "weights": "ema", "AP": 0.5, "per_class": {}}


def test_gains_of_classes_without_a_score_are_unknown() -> None:
    old, new = {"AP": 0.1, "per_class": {"a": 0.1, "b": None}}, {"AP": 0.4, "per_class": {"a": 0.3, "b": 0.5}}
    gain = deltas(old, new)
    assert gain["AP"] == pytest.approx(0.3)
    assert gain["per_class"] == {"a": pytest.approx(0.2), "b": None}


def test_two_writers_are_refused(scenes: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".run.lock"), pytest.raises(ConfigError, match=r"run: another process trains here; wait for it"):
        run(scenes, tmp_path / "run", epochs=1)


def test_a_train_split_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    with pytest.raises(DatasetError, match=r"its train split has no images; expected at least one, look with: rapidetr doctor"):
        train(tmp_path, model="nano", weights="random", out=tmp_path / "run")


def test_a_detector_starts_its_segmentation_sibling_and_back(tmp_path):
    """Everything but the mask head is kept; other shapes are refused by name."""
    labels = LabelSpace.contiguous(("a", "b"))
    pico = make_start("pico", labels, Recipe(weights="random", seed=1))
    save_checkpoint(pico, tmp_path / "pico.safetensors")
    begun = make_start("seg-pico", labels, Recipe(weights=str(tmp_path / "pico.safetensors"), seed=2))
    assert (begun.config.name, begun.config.segmentation, begun.config.class_rows) == ("seg-pico", True, pico.config.class_rows)
    assert "mask head started fresh" in begun.notes
    head = {n for n in begun.state if n.startswith("mask_head.")}
    assert head
    assert set(begun.state) - head == set(pico.state)
    assert all(torch.equal(begun.state[n], t) for n, t in pico.state.items())
    begun.network()  # strict
    save_checkpoint(begun, tmp_path / "seg.safetensors")
    back = make_start("pico", labels, Recipe(weights=str(tmp_path / "seg.safetensors")))
    assert "mask head dropped" in back.notes
    assert all(torch.equal(back.state[n], t) for n, t in pico.state.items())
    with pytest.raises(ConfigError, match=r"^these weights cannot start a nano: vit_width 192 -> 384, vit_depth 6 -> 12, "):
        make_start("nano", labels, Recipe(weights=str(tmp_path / "pico.safetensors")))

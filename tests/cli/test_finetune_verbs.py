"""`rapidetr doctor`, `train` and `evaluate`: one small dataset from its check to the scores of what was learned on it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rapidetr
from rapidetr.checkpoints.file import open_checkpoint, save_checkpoint, save_official, write_atomically
from rapidetr.cli.console import Console
from rapidetr.cli.main import VERBS, main, verb_parser
from rapidetr.cli.train import Bar
from rapidetr.data import write_coco
from rapidetr.demo import render_scene, scene_seed, write_dataset
from rapidetr.training.loop import Place

NAMES = ["cat", "dog", "7"]
OPTIONS = ("--no-report", "--batch-size", 2, "--stages", "head:1,all:1@0.5", "--watch", "ema", "--device", "cpu", "--seed", 3, "--json")


@pytest.fixture(scope="module")
def scenes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered scenes whose objects are what the random model says of them, so that its AP is not 0; without a test split."""
    folder, detector = tmp_path_factory.mktemp("scenes") / "data", rapidetr.load(model, device="cpu")
    for split, count in (("train", 6), ("valid", 3)):
        pictures = [render_scene(scene_seed(5, split, i), size_hw=(96, 96)).pixels for i in range(count)]
        found = [one[:4] for one in detector.predict(pictures, 0.0, purpose="evaluate")]
        made = [(f"{i}.jpg", pixels, d.boxes_xyxy_px, d.class_ids, None) for i, (pixels, d) in enumerate(zip(pictures, found, strict=True))]
        write_coco(folder, split, made, detector.labels)
    return folder


@dataclass(frozen=True)
class Trained:
    folder: Path
    words: tuple[object, ...]  # the command line
    status: int
    out: str
    said: str


@pytest.fixture(scope="module")
def trained(scenes: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ("train", scenes, "--model", model, "--out", folder, *OPTIONS)
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        status = main([str(word) for word in words])
    return Trained(folder, words, status, out.getvalue(), said.getvalue())


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_the_doctor_finds_nothing_wrong_with_rendered_scenes(run, tmp_path):
    scenes = tmp_path / "data"
    for split, count in (("train", 6), ("valid", 2)):
        write_dataset(scenes, count, 5, split=split, size_hw=(96, 96))
    status, out, err = run("doctor", scenes, "--size", 96)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{scenes}: coco, looked at for an input of 96 x 96: 0 errors, ")
    assert re.search(r"^train +6 +\d+ +\d+$", out, re.M)
    status, out, err = run("doctor", scenes, "--json", "--headers-only")
    record = json.loads(out)
    assert (status, record["ok"], record["size_hw"], list(record["splits"])) == (0, True, [384, 384], ["train", "valid"])
    assert "looked at for an input of 384 x 384" in err


def test_the_doctor_draws_samples_and_what_it_found(run, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "train" / "0.jpg").write_bytes(b"no picture")
    status, out, _ = run("doctor", data, "--size", 96, "--out", tmp_path / "looks", "--headers-only")
    assert status == 1
    drawn = sorted(p.name for p in (tmp_path / "looks").iterdir())
    assert {"samples-train.jpg", "samples-valid.jpg"} <= set(drawn)
    assert not any("unreadable" in name for name in drawn)  # nothing to draw there
    assert all(f"drawn: {tmp_path / 'looks' / name}" in out for name in drawn)
    with Image.open(tmp_path / "looks" / "samples-train.jpg") as sheet:
        assert sheet.size == (3 * 96, 2 * 96)  # five of six can be read


def test_the_doctor_draws_what_it_can_where_train_is_broken(run, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "train" / "_annotations.coco.json").write_text('{"images": [')
    status, out, _ = run("doctor", data, "--out", tmp_path / "looks", "--headers-only", "--json")
    record = json.loads(out.splitlines()[-1])
    assert (status, [f["kind"] for f in record["findings"] if f["severity"] == "error"]) == (1, ["broken-file"])
    assert [p.name for p in (tmp_path / "looks").iterdir()] == ["samples-valid.jpg"]


def test_a_folder_in_two_formats_is_read_as_told(run, scenes, tmp_path, model):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "data.yaml").write_text("train: train\nnames: [ant]\n")
    for words in (("train", data, "--model", model, "--out", tmp_path / "run", "--epochs", 0), ("evaluate", model, "--data", data)):
        status, _, err = run(*words, "--quiet")
        assert (status, err.count("could be coco or yolo; say which with format=")) == (2, 0 if words[0] == "train" else 1)
    status, _, err = run("train", data, "--model", model, "--out", data, "--format", "coco")
    assert (status, err.count("holds other files and no run")) == (2, 1)
    status, out, _ = run("evaluate", model, "--data", data, "--format", "coco", "--json")
    assert (status, json.loads(out.splitlines()[-1])["split"]) == (0, "valid")


def test_the_doctor_names_file_and_line_and_ends_with_1(run, tmp_path):
    for split, red in (("train", 255), ("val", 9)):
        (tmp_path / "yolo" / split / "images").mkdir(parents=True)
        (tmp_path / "yolo" / split / "labels").mkdir()
        Image.new("RGB", (64, 48), (red, 0, 0)).save(tmp_path / "yolo" / split / "images" / "a.png")
        (tmp_path / "yolo" / split / "labels" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: train/images\nval: val/images\nnames: [ant]\n")
    (tmp_path / "yolo" / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n0 0.5 half 0.4 0.4\n")
    status, out, err = run("doctor", "yolo", "--json", "--quiet")
    record = json.loads(out)
    assert (status, err, record["ok"]) == (1, "", False)
    assert [f["kind"] for f in record["findings"] if f["severity"] == "error"] == ["bad-line"]
    status, out, _ = run("doctor", "yolo")
    assert status == 1
    expected = (
        "ERROR bad-line in train: 1\n    cost: 1 annotations are lost\n    do: correct the line\n    yolo: train/labels/a.txt line 2 is "
    )
    assert expected in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("doctor", "nix"), "nix: no such file or folder; expected COCO "),
        (("train", "nix", "--out", "run"), "nix: no such file or folder; expected COCO "),
        (("evaluate", "nano", "--data", "nix"), "nix: no such file or folder; expected COCO "),
        (("evaluate", "nano", "--data", "SCENES", "--split", "test"), "SCENES: no test split; there is train, valid"),
        (
            ("evaluate", "SCENES", "--data", "SCENES"),
            "SCENES: is a folder without best.safetensors; name a checkpoint file, or a run folder",
        ),
        (("train", "SCENES/valid", "--out", "run"), "SCENES/valid: no train split; there is "),
        (("train", "SCENES", "--out", "run", "--epochs", "0"), "epochs is 0; expected a whole number, 1 to 1e+06"),
        (("train", "SCENES", "--out", "SCENES"), "SCENES: holds other files and no run; name an empty or a new folder"),
    ],
)
def test_wrong_input_is_one_line_and_makes_no_run(run, scenes, tmp_path, words, message):
    status, out, err = run(*(word.replace("SCENES", str(scenes)) for word in words), "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"rapidetr: error: {message.replace('SCENES', str(scenes))}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--optimizer-options", "5", """expected a JSON object such as {"betas": [0.9, 0.95]}, got '5'"""),
        ("--optimizer-options", "{", """expected a JSON object such as {"betas": [0.9, 0.95]}, got '{'"""),
        ("--class-weights", "1,two", "expected numbers separated by commas, or auto, got '1,two'"),
        ("--workers", "-1", "expected a whole number of at least 0, got '-1'"),
        ("--cache-gb", "nan", "expected a number of at least 0, got 'nan'"),
        ("--save-minutes", "nan", "expected a number of at least 0, got 'nan'"),
        ("--save-minutes", "soon", "expected a number of at least 0, got 'soon'"),
    ],
)
def test_options_that_cannot_be_read_are_told(run, option, value, message):
    status, _, err = run("train", "data", option, value)
    assert (status, err.splitlines()[-1]) == (2, f"rapidetr train: error: argument {option}: {message}")


@pytest.mark.parametrize(("value", "message"), [("1.5", "expected a score between 0 and 1"), ("inf", "expected a number of at least 0")])
def test_a_threshold_is_a_score(run, value, message):
    status, _, err = run("evaluate", "nano", "--data", "data", "--threshold", value)
    assert (status, err.splitlines()[-1]) == (2, f"rapidetr evaluate: error: argument --threshold: {message}, got {value!r}")


def test_evaluate_does_not_write_over_the_report_of_a_run(run, trained, scenes):
    before = {path: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()}
    status, _, err = run("evaluate", trained.folder, "--data", scenes, "--out", trained.folder)
    told = f"{trained.folder}: is a run, with a report of its own; name another folder, such as {trained.folder}/valid"
    assert (status, err) == (2, f"rapidetr: error: {told}\n")
    assert {path: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_evaluate_reports_pictures_of_any_name_and_its_numbers_outlive_a_report_that_fails(run, model, scenes, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(scenes / "valid", data / "valid")
    file = data / "valid" / "_annotations.coco.json"
    record = json.loads(file.read_text())
    names = ["\u56fe" * 81 + ".jpg", os.fsdecode(b"caf\xe9.jpg"), "plain.jpg"]
    for image, name in zip(record["images"], names, strict=True):
        (data / "valid" / image["file_name"]).rename(data / "valid" / name)
        image["file_name"] = name
    file.write_text(json.dumps(record))
    words = ("evaluate", model, "--data", data, "--device", "cpu", "--json")
    status, out, err = run(*words, "--out", tmp_path / "report")
    assert status == 0, err
    told = json.loads((tmp_path / "report" / "report.json").read_text())["image_names"]
    assert sorted(Path(name).name for name in told) == sorted(names)
    assert "report.html" in {path.name for path in (tmp_path / "report").iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rapidetr.training.report.write_files", full)
    status, out, err = run(*words, "--out", tmp_path / "other")
    told = f"{tmp_path / 'other'}: the report is incomplete: [Errno 28] No space left on device"
    assert (status, err.splitlines()[-1]) == (1, f"rapidetr: error: {told}")
    record = json.loads(out)
    assert record["problems"] == [told]
    assert record["boxes"]["metrics"]["AP"] is not None


def test_every_field_of_the_recipe_is_an_option():
    words = [
        "data",
        "--size",
        "96x64",
        "--class-weights",
        "1,2.5",
        "--no-multi-scale",
        "--optimizer-options",
        '{"fused": true}',
        "--seed",
        "4",
    ]
    args = verb_parser("train", import_module(VERBS["train"][0])).parse_args(words)
    given = {f.name: getattr(args, f.name) for f in fields(rapidetr.Recipe) if f.name != "version"}
    told = {"size_hw": (96, 64), "class_weights": (1.0, 2.5), "multi_scale": False, "optimizer_options": {"fused": True}, "seed": 4}
    assert {name: value for name, value in given.items() if value is not None} == told
    assert rapidetr.Recipe.from_dict(told).to_dict()["size_hw"] == [96, 64]


@pytest.mark.slow
def test_train_leaves_a_run_that_can_be_read(trained, scenes):
    record = json.loads(trained.out)  # one document, nothing else on stdout
    assert trained.status == 0
    assert record.pop("folder") == str(trained.folder)
    assert record == json.loads((trained.folder / "record.json").read_text())
    assert (record["epochs"], record["steps"], record["recipe"]["seed"]) == (2, 10, 3)
    rows = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == record["history"]
    table = csv.DictReader((trained.folder / "metrics.csv").read_text().splitlines())
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in rows]
    for line in (
        f"{scenes}: 6 pictures to learn from, 3 of the valid split to score",
        "class head kept: the classes are the same",
        "    epoch     loss      cls      box     giou   AP raw   AP ema     best      time\n   1/2   ",
    ):
        assert line in trained.said
    assert f"{trained.folder}: finished, 2 epochs, AP " in trained.said


@pytest.mark.slow
def test_the_same_command_says_it_is_finished_and_another_recipe_is_refused(run, trained):
    before = {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*")}
    status, out, err = run(*trained.words)
    assert (status, out) == (0, trained.out)
    assert f"{trained.folder}: this run is finished (2 epochs, AP " in err
    status, _, err = run(*trained.words, "--lr", "0.001", "--patience", "3", "--quiet")
    assert status == 2
    refusal = "was begun with another recipe: lr 0.0001 -> 0.001, patience 0 -> 3; go on with the old one, or use "
    assert err.startswith(f"rapidetr: error: {trained.folder}: {refusal}")
    assert {p: p.stat().st_mtime_ns for p in trained.folder.rglob("*")} == before


@pytest.mark.slow
def test_a_run_folder_is_its_best_weights(run, trained, scenes):
    best, folder = rapidetr.load(trained.folder / "best.safetensors", device="cpu"), rapidetr.load(trained.folder, device="cpu")
    weights = best.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in folder.model.state_dict().items())
    baseline = rapidetr.load(trained.folder / "baseline.safetensors", device="cpu").model.state_dict()
    assert not torch.equal(baseline["class_head.weight"], weights["class_head.weight"])
    assert folder.class_names == NAMES
    picture = next((scenes / "valid").glob("*.jpg"))
    status, out, _ = run("predict", picture, "--model", trained.folder, "--device", "cpu", "--no-pictures", "--json")
    assert (status, len(json.loads(out)["images"])) == (0, 1)


@pytest.mark.slow
def test_evaluate_scores_a_run_as_training_did(run, trained, scenes):
    words = ("evaluate", trained.folder, "--data", scenes, "--device", "cpu")
    status, out, err = run(*words, "--json")
    record = json.loads(out)
    assert (status, record["model"], record["split"], record["max_dets"]) == (0, str(trained.folder), "valid", 100)
    learned = json.loads(trained.out)["best"]
    told = dict(zip(record["class_names"], record["boxes"]["ap"], strict=True))
    assert learned["AP50"] > 0  # or the next line says little
    # the very same arithmetic on the very same weights, read back from the file
    for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"):
        assert record["boxes"]["metrics"][name] == learned[name], name
    assert told == learned["per_class"]
    status, table, _ = run(*words)
    assert (status, table) == (0, err)
    assert re.search(r"^AP +[01]\.\d{3}$", table, re.M)
    assert re.search(r"^all classes +\d+ ", table, re.M)
    assert all(re.search(rf"^{name} +\d+ ", table, re.M) for name in NAMES)


@pytest.mark.slow
def test_evaluate_writes_a_report_whose_numbers_are_those_it_prints(run, trained, scenes, tmp_path):
    status, out, err = run("evaluate", trained.folder, "--data", scenes, "--device", "cpu", "--json", "--out", tmp_path / "report")
    record = json.loads(out)
    assert (status, record) == (0, json.loads((tmp_path / "report" / "report.json").read_text()))
    page = (tmp_path / "report" / "report.html").read_text()
    assert json.loads(page.split('id="record">')[1].split("</script>")[0]) == record
    for name, value in record["boxes"]["metrics"].items():
        assert f"<td>{name}</td><td>{'-' if value is None else f'{value:.3f}'}</td>" in page
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert files == {"report.json", "report.html", "pr.png", "confusion.png", "worst"}
    wrong = [counts for counts in record["boxes"]["counts"] if any(counts[1:])]
    assert len(list((tmp_path / "report" / "worst").glob("*.jpg"))) == len(wrong)
    assert f"{tmp_path / 'report'}: report.json, pr.png, confusion.png, report.html, and the worst images in worst/\n" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("quiet", "terminal", "live"), [(False, True, True), (True, True, False), (False, False, False)])
def test_the_bar_is_for_terminals_and_lines_stay_above_it(monkeypatch, quiet, terminal, live):
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    bar = Bar(Console(json=False, quiet=quiet))
    assert bar.live == live
    if live:
        bar.step(Place(0, 3, 2, 8, 1.5))
        bar.step(Place(0, 3, 8, 8, 0.25))
        bar.say("a line")
        bar.step(Place(1, 3, 2, 8, 0.5))
        bar.close()
        shown = screen.getvalue()
        assert "epoch 1/3:  25%" in shown
        assert "epoch 2/3:  25%" in shown
        assert "loss=1.500" in shown
        assert "\ra line\n" in shown


def test_an_unknown_logger_is_refused_before_anything_is_made(run, scenes, tmp_path):
    status, _, err = run("train", scenes, "--out", "run", "--loggers", "tensorboard,neptune", "--quiet")
    assert (status, err) == (2, "rapidetr: error: unknown logger 'neptune'; there are tensorboard, wandb, mlflow\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_python_trains_from_a_run_and_gives_a_detector(trained, scenes, tmp_path):
    said: list[str] = []
    done = rapidetr.train(
        scenes,
        model=trained.folder,
        out=tmp_path / "next",
        epochs=1,
        batch_size=2,
        ema_decay=0,
        device="cpu",
        report=False,
        say=said.append,
    )
    assert isinstance(done, rapidetr.Run)
    assert "class head kept: the classes are the same" in said
    assert (done.best.class_names, done.record["model"]) == (NAMES, str(trained.folder))


@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
def test_files_get_the_mode_of_the_umask(model, tmp_path, umask_027):
    checkpoint = open_checkpoint(model)
    square = save_official(checkpoint, tmp_path / "a.pth")
    ours = save_checkpoint(checkpoint, tmp_path / "a.safetensors")
    write_atomically(tmp_path / "a.txt", lambda part: part.write_text("a"))
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (square, ours, tmp_path / "a.txt")}
    assert modes == {"a.pth": "0o640", "a.safetensors": "0o640", "a.txt": "0o640"}


def test_the_documented_defaults_are_those_of_the_recipe(root):
    text = (root / "docs" / "fine-tune.md").read_text(encoding="utf-8")
    section = text.split("## The default recipe")[1].split("\n## ")[0]
    told: dict[str, Any] = dict(re.findall(r"`(\w+)=([^`]+)`", section))
    assert len(told) > 15
    recipe = rapidetr.Recipe()
    assert {name: str(getattr(recipe, name)) for name in told} == told

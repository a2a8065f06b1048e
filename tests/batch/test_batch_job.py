"""A job: what it writes, that it goes on where it was cut off, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rapidetr
from rapidetr.batch.job import Job, finish, read_record, read_results
from rapidetr.batch.predictor import ATTEMPTS, Predictor
from rapidetr.batch.recipe import pin_model
from rapidetr.batch.run import plan_of, run_here
from rapidetr.batch.store import Store
from rapidetr.core.errors import ConfigError, RapidetrError
from rapidetr.runtime.artifact import Manifest, write_artifact
from rapidetr.runtime.lock import sha256_of

Start = Callable[..., tuple[Job, Predictor]]
PREDICT = Predictor.predict


class Killed(BaseException):
    """Stands for the death of the process: nothing of ours may catch it."""


def done(job: Job, predictor: Predictor) -> dict[str, Any]:
    """The job run to its end in this process, and its sums."""
    return finish(job, list(run_here(job, predictor)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def results(out: Path) -> dict[str, bytes]:
    """All that does not name a run."""
    return {name: data for name, data in files(out).items() if not name.startswith("records/")}


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """alive(n) -> numbers of shards that are predicted; after n of them the process dies in the middle of the next."""

    def arm(shards: int) -> list[int]:
        seen: list[int] = []

        def mortal(self: Predictor, shard: Any, detector: Any) -> Any:
            if len(seen) == shards:
                raise Killed
            seen.append(shard.number)
            return PREDICT(self, shard, detector)

        monkeypatch.setattr(Predictor, "predict", mortal)
        return seen

    return arm


def test_results_are_those_of_predict(start: Start, photos: Path, tiny: Path, tmp_path: Path) -> None:
    sums = done(*start(photos))
    rows = list(read_results(str(tmp_path / "out")))
    detector = rapidetr.load(tiny, device="cpu")
    for image_id, (row, file) in enumerate(zip(rows, sorted(photos.iterdir()), strict=True), 1):
        one = detector.predict(file, 0.1)[0]
        assert (row["id"], row["file_name"], (row["height"], row["width"])) == (image_id, str(file), one.image_hw)
        expected = one.to_coco(image_id)
        assert [(a["image_id"], a["category_id"]) for a in row["annotations"]] == [(a["image_id"], a["category_id"]) for a in expected]
        for got, want in zip(row["annotations"], expected, strict=True):  # a batch of two adds in another order than one of one
            assert got["bbox"] == pytest.approx(want["bbox"], abs=1e-3)
            assert got["score"] == pytest.approx(want["score"], abs=1e-5)
    found = sum(len(row["annotations"]) for row in rows)
    assert found > 10
    assert sums == {
        "out": str(tmp_path / "out"), "images": 10, "predicted": 10, "failed": 0, "detections": found, "shards": 4,
        "shards_done_before": 0, "images_this_run": 10,
    }  # fmt: skip
    assert (tmp_path / "out" / "errors.jsonl").read_bytes() == b""
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["categories"][0] == {"id": 10, "name": "c0"}


@pytest.mark.parametrize("case", ["tiny_det", "tiny_seg"])
def test_formats_hold_the_same(start: Start, photos: Path, make_tiny: Callable[[str], Path], tmp_path: Path, case: str) -> None:
    model = make_tiny(case)
    for form in ("jsonl", "parquet"):
        done(*start(photos, out=tmp_path / form, model=model, format=form, limit=4))
    rows = list(read_results(str(tmp_path / "jsonl")))
    assert rows == list(read_results(str(tmp_path / "parquet")))
    assert sum(len(row["annotations"]) for row in rows) > 0
    assert ("segmentation" in next(a for row in rows for a in row["annotations"])) == (case == "tiny_seg")
    assert pq.read_table(tmp_path / "parquet" / "parts").num_rows == 4  # all shards have one schema, also those without a result


def test_only_these_classes(start: Start, photos: Path, tmp_path: Path) -> None:
    done(*start(photos, out=tmp_path / "all", threshold=0.0))
    done(*start(photos, out=tmp_path / "one", threshold=0.0, classes=(1,)))
    ids = {a["category_id"] for row in read_results(str(tmp_path / "all")) for a in row["annotations"]}
    assert len(ids) > 1
    assert {a["category_id"] for row in read_results(str(tmp_path / "one")) for a in row["annotations"]} == {20}


@pytest.mark.parametrize("shards", [0, 1, 2, 3])
def test_a_job_that_was_cut_off_repeats_nothing_and_loses_nothing(
    start: Start, photos: Path, tmp_path: Path, alive: Callable[[int], list[int]], shards: int
) -> None:
    (photos / "02.png").write_bytes(b"broken")
    done(*start(photos, out=tmp_path / "whole"))
    before = alive(shards)
    with pytest.raises(Killed):
        done(*start(photos))
    (photos / "005.png").write_bytes((photos / "00.png").read_bytes())  # what came later is not part of the job
    after = alive(99)
    job, predictor = start(photos)
    assert [place.number for place in job.todo] == list(range(shards, 4))
    sums = done(job, predictor)
    assert before[:shards] + after == [0, 1, 2, 3]
    assert (sums["shards_done_before"], sums["images_this_run"], sums["failed"]) == (shards, 10 - 3 * shards, 1)
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert start(photos)[0].todo == []


def test_a_result_file_that_is_not_as_recorded_is_made_anew(start: Start, photos: Path, tmp_path: Path) -> None:
    done(*start(photos))
    whole = results(tmp_path / "out")
    parts = tmp_path / "out" / "parts"
    (parts / "00000001.jsonl").write_bytes(b"cut off")
    (parts / "00000002.jsonl").unlink()
    damaged = (parts / "00000003.jsonl").read_bytes().replace(b"09.png", b"08.png")
    (parts / "00000003.jsonl").write_bytes(damaged)
    assert [place.number for place in start(photos)[0].todo] == [1, 2]
    job, predictor = start(photos, again={"verify": True})
    assert [place.number for place in job.todo] == [1, 2, 3]
    done(job, predictor)
    assert results(tmp_path / "out") == whole


def test_bad_pictures_go_to_the_errors_and_stop_nothing(start: Start, photos: Path, tmp_path: Path) -> None:
    (photos / "01.png").write_bytes(b"")
    (photos / "03.png").unlink()
    os.symlink(tmp_path / "none", photos / "03.png")
    for name in ("06.png", "07.png", "08.png"):  # a whole shard
        (photos / name).write_bytes((photos / name).read_bytes()[:60])
    sums = done(*start(photos / "*.png"))
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    rows = list(read_results(str(tmp_path / "out")))
    assert (sums["predicted"], sums["failed"]) == (len(rows), len(errors)) == (10 - len(errors), len(errors))
    assert sorted([row["id"] for row in rows] + [e["image_id"] for e in errors]) == list(range(1, 11))
    assert errors[0] == {
        "image_id": 2, "source": str(photos / "01.png"),
        "message": f"{photos / '01.png'} is empty (0 bytes); copy or download it again",
    }  # fmt: skip
    assert [e["image_id"] for e in errors] == [2, 4, 7, 8, 9]
    for name in ("06.png", "07.png", "08.png"):
        (photos / name).write_bytes((photos / "05.png").read_bytes())
    assert start(photos / "*.png")[0].todo == []
    job, predictor = start(photos / "*.png", again={"retry_failed": True})
    assert [place.number for place in job.todo] == [0, 1, 2]
    assert done(job, predictor)["failed"] == 2


def test_a_table_that_breaks_while_it_is_read_is_an_error_for_its_rows(start: Start, photos: Path, tmp_path: Path) -> None:
    data = [file.read_bytes() for file in sorted(photos.iterdir())]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": data}), path)
    job, predictor = start(path)
    path.write_bytes(b"gone")
    assert done(job, predictor)["failed"] == 10


def test_a_shard_that_kills_its_process_is_given_up_after_three_times(start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, predictor = start(photos)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", lambda *_: (_ for _ in ()).throw(Killed))
        for attempt in range(1, ATTEMPTS + 1):
            with pytest.raises(Killed):
                predictor.predict_shard(job.todo[0])
            record = read_record(job.store, 0)
            assert record is not None
            assert (record["state"], record["attempt"]) == ("started", attempt)
        record = predictor.predict_shard(job.todo[0])
    assert [e["image_id"] for e in record["errors"]] == [1, 2, 3]
    assert record["errors"][0]["source"] == str(photos / "00.png")
    assert record["errors"][0]["message"] == (
        "a process died on this or another picture of its shard, 3 times; predict these with smaller shards"
    )
    assert predictor.predict_shard(job.todo[0]) == record  # done in this run: not again
    again, fresh = start(photos, again={"retry_failed": True})
    assert fresh.predict_shard(again.todo[0])["errors"] == []  # a new run counts from the beginning


def test_a_model_that_kills_its_process_ends_the_run(start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process is a new Predictor; Ray starts them without end."""
    job, predictor = start(photos)
    with monkeypatch.context() as patch:
        patch.setattr("rapidetr.batch.predictor.load", lambda *_, **__: (_ for _ in ()).throw(Killed))
        for loads in range(1, ATTEMPTS + 1):
            with pytest.raises(Killed):
                Predictor(predictor.plan).predict_shard(job.todo[0])
            record = read_record(job.store, 0)
            assert record is not None
            assert (record["state"], record["loads"], record["attempt"]) == ("loading", loads, 0)
        with pytest.raises(RapidetrError) as ended:
            Predictor(predictor.plan).predict_shard(job.todo[0])
    assert str(ended.value) == (
        f"{predictor.plan.model}: loading it killed its process 3 times; give processes more memory, or start fewer"
    )
    again, fresh = start(photos)
    assert len(again.todo) == 4
    assert fresh.predict_shard(again.todo[0])["attempt"] == 1  # a new run counts from the beginning


def test_processes_that_die_of_a_picture_do_not_count_as_dying_of_the_model(
    start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, predictor = start(photos)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", lambda *_: (_ for _ in ()).throw(Killed))
        for _ in range(ATTEMPTS):
            with pytest.raises(Killed):
                Predictor(predictor.plan).predict_shard(job.todo[0])
        record = Predictor(predictor.plan).predict_shard(job.todo[0])
    assert (record["state"], len(record["errors"]), record["attempt"]) == ("done", 3, ATTEMPTS + 1)


def test_what_cannot_be_loaded_is_told_in_one_line(start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, predictor = start(photos)
    monkeypatch.setattr("rapidetr.batch.predictor.load", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no\nmemory")))
    with pytest.raises(RapidetrError) as refused:
        predictor.predict_shard(job.todo[0])
    assert str(refused.value) == (
        f"{predictor.plan.model}: cannot be loaded by a process of this job (RuntimeError: no memory); "
        "try `rapidetr predict` with it on the same machine"
    )


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"threshold": 0.2}, "threshold 0.1, now 0.2"),
        ({"threshold": 0.2, "format": "parquet"}, "format 'jsonl', now 'parquet'; threshold 0.1, now 0.2"),
        ({"classes": (0, 1)}, "classes None, now [0, 1]"),
        ({"size_hw": (64, 64)}, "size_hw None, now [64, 64]"),
        ({"limit": 3}, "limit None, now 3"),
    ],
)
def test_another_recipe_is_refused(start: Start, photos: Path, tmp_path: Path, now: dict[str, Any], told: str) -> None:
    start(photos)
    held = files(tmp_path / "out")
    with pytest.raises(ConfigError) as refused:
        start(photos, **now)
    assert str(refused.value) == f"{tmp_path / 'out'}: was started with {told}; go on with the same, or choose another --out"
    assert files(tmp_path / "out") == held


def test_other_weights_are_refused(start: Start, photos: Path, make_tiny: Callable[[str], Path]) -> None:
    start(photos)
    with pytest.raises(ConfigError, match=r"out: was started with model_sha256 '[0-9a-f]{64}', now '[0-9a-f]{64}'; go on"):
        start(photos, model=make_tiny("tiny_few"))


def test_a_registry_that_moves_on_does_not_change_a_job(start: Start, photos: Path, tiny: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for name, queries in (("a", 9), ("b", 8)):
        detector = rapidetr.load(tiny, device="cpu", queries=queries)
        manifest = Manifest.of(detector, source=tiny, command="a test", parameters={})
        write_artifact(registry / "artifacts" / name, {"best.safetensors": tiny}, manifest)
    (registry / "current").write_text("a\n")
    job, predictor = start(photos, model=registry / "current")
    assert predictor.plan.model == str(registry / "artifacts" / "a")
    (registry / "current").write_text("b\n")
    assert predictor.detector.engine.queries == 9  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="started with model_sha256"):
        start(photos, model=registry / "current")
    assert start(photos, model=registry / "artifacts" / "a")[0].todo == job.todo


def test_folders_of_something_else_are_refused(start: Start, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text in ("{}", "no json", '{"schema": "rapidetr.artifact/1"}'):
        (tmp_path / "out" / "manifest.json").write_text(text)
        with pytest.raises(ConfigError, match=r"out: holds a manifest\.json that is not of a batch job \(rapidetr\.batch/1\)"):
            start(photos)
    with pytest.raises(ConfigError, match=r"none: has no manifest\.json; expected the folder of a batch job$"):
        list(read_results(str(tmp_path / "none")))
    with pytest.raises(ConfigError, match=r"^format is 'csv'; expected jsonl or parquet$"):
        start(photos, format="csv")


def test_a_changed_list_of_inputs_is_refused(start: Start, photos: Path, tmp_path: Path) -> None:
    start(photos)
    listed = tmp_path / "out" / "inputs.jsonl"
    listed.write_text(listed.read_text().replace("09.png", "08.png"))
    with pytest.raises(RapidetrError, match=r"out: inputs\.jsonl was changed since the job was started; restore it"):
        start(photos)


def test_a_job_whose_start_was_cut_off_starts_anew(start: Start, photos: Path, tmp_path: Path) -> None:
    """Without a manifest there is no job, whatever else lies there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inputs.jsonl").write_text("half a li")
    assert done(*start(photos))["predicted"] == 10


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "s"))
    store.write("parts/x", b"old")
    writing = store.writing("parts/x")
    writing.__enter__().write(b"ne")
    assert store.read("parts/x") == b"old"
    assert not writing.__exit__(Killed, Killed(), None)  # it goes on
    assert files(tmp_path / "s") == {"parts/x": b"old"}
    (tmp_path / "s" / "parts" / ".y.1.part").write_bytes(b"of a killed process")
    store.sweep("parts")
    assert files(tmp_path / "s") == {"parts/x": b"old"}


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_from_store_to_store(start: Start, photos: Path, tmp_path: Path, memory: Any, alive: Callable[[int], list[int]]) -> None:
    """In and out of memory://, cut off and gone on with: what a job on local files gives, but for the names."""
    for file in photos.iterdir():
        memory.pipe_file(f"/in/{file.name}", file.read_bytes())
    alive(2)
    with pytest.raises(Killed):
        done(*start("memory://in", out="memory://out"))
    assert alive(99) == []
    job, predictor = start("memory://in", out="memory://out")
    assert len(job.done) == 2
    assert done(job, predictor)["out"] == "memory:///out"
    done(*start(photos))
    remote, local = list(read_results("memory://out")), list(read_results(str(tmp_path / "out")))
    assert [row.pop("file_name") for row in remote] == [f"memory:///in/{i:02d}.png" for i in range(10)]
    assert [row.pop("file_name") for row in local] == [str(photos / f"{i:02d}.png") for i in range(10)]
    assert remote == local


def test_a_predictor_travels_without_its_model(start: Start, photos: Path) -> None:
    job, predictor = start(photos)
    plain = pickle.dumps(predictor)
    predictor.predict_shard(job.todo[0])
    assert pickle.dumps(predictor) == plain
    assert len(plain) < 4000
    assert pickle.loads(plain).predict_shard(job.todo[1])["count"] == 3


def test_the_model_is_pinned_by_absolute_path(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert pin_model(tiny.name).source == str(tiny)
    assert pin_model("pico").source == "pico"


def test_weights_that_change_under_a_job_are_not_mixed(start: Start, photos: Path, tiny: Path, make_tiny: Any, tmp_path: Path) -> None:
    live, moved = tmp_path / "live.safetensors", tmp_path / "moved.safetensors"
    live.write_bytes(tiny.read_bytes())
    job, predictor = start(photos, model=live)
    whole = done(job, predictor)
    (tmp_path / "out" / "records" / "00000001.json").unlink()
    live.write_bytes(make_tiny("tiny_seg").read_bytes())
    moved.write_bytes(tiny.read_bytes())
    job, predictor = start(photos, model=moved)  # the same weights, elsewhere
    with pytest.raises(RapidetrError, match=r"live.safetensors: is another model than the one the job began with \(its sha256 is "):
        done(job, predictor)
    assert done(job, Predictor(plan_of(job, str(moved), device="cpu", batch_size=2)))["detections"] == whole["detections"]


def test_a_folder_of_any_name_can_be_gone_on_with(start: Start, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o[3]*"
    whole = done(*start(photos, out=out))
    (out / "records" / "00000001.json").unlink()
    assert done(*start(photos, out=out))["detections"] == whole["detections"]
    assert len(list(read_results(str(out)))) == 10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_names_that_are_no_text_go_into_parquet_as_escapes(start: Start, photos: Path, tmp_path: Path) -> None:
    (photos / "00.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    assert done(*start(photos, format="parquet"))["failed"] == 0
    names = {Path(row["file_name"]).name for row in read_results(str(tmp_path / "out"))}
    assert "caf\\udce9.png" in names
    assert len(sha256_of(photos)) == 64

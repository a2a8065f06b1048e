"""Each logger holds every epoch once, read back by its own reader, also after kills at the worst moments."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.training import loggers
from rapidetr.training.loggers import check_loggers, figures, open_loggers

PLAN = {"recipe": {"lr": 1e-4, "stages": "all:3"}, "model": "nano"}
ROWS: list[dict[str, Any]] = [{"step": 0, "baseline": {"AP": 0.25}}]
ROWS += [{"epoch": e, "step": 5 * (e + 1), "loss": 3.0 - e, "raw": {"AP": e / 8, "AP_small": None}} for e in range(3)]
# a value of every figure that must be there, by name and step; each is exact in float32
EXPECTED = {(name, row["step"]): value for row in ROWS for name, value in figures(row).items()}


def be_killed_twice(kind: str, folder: Path) -> None:
    """Killed after two rows were sent, the last of them unsaved; then after a row that was saved was not sent."""
    first = open_loggers([kind], folder, PLAN, ROWS[:1])[0]
    for row in ROWS[1:3]:
        first.log(row)
    first.close()  # frees threads and files; every row was on disk before
    open_loggers([kind], folder, PLAN, ROWS[:2])[0].close()
    last = open_loggers([kind], folder, PLAN, ROWS[:3])[0]
    last.log(ROWS[3])
    last.close()


def test_figures_are_the_numbers_that_are_defined() -> None:
    assert figures(ROWS[1]) == {"epoch": 0, "step": 5, "loss": 3.0, "raw/AP": 0.0}


def test_names_are_a_list_or_a_text() -> None:
    assert check_loggers("tensorboard, mlflow,tensorboard") == ("tensorboard", "mlflow")
    assert check_loggers(["wandb"]) == ("wandb",)
    assert check_loggers("") == check_loggers(()) == ()


def test_unknown_and_missing_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as problem:
        check_loggers("tensorbord")
    assert str(problem.value) == "unknown logger 'tensorbord'; there are tensorboard, wandb, mlflow"
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing) as missing:
        check_loggers("wandb")
    assert str(missing.value) == "the logger wandb needs wandb; install it with: pip install 'rapidetr[loggers]'"


@pytest.mark.slow
def test_tensorboard_reads_every_figure_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    be_killed_twice("tensorboard", tmp_path)
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    found = [((name, event.step), event.value) for name in reader.Tags()["scalars"] for event in reader.Scalars(name)]
    assert len(found) == len(EXPECTED)
    assert dict(found) == EXPECTED
    shown = reader.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(shown.strip("`\n")) == PLAN


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings, caches or servers of this computer's user."""
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")  # as the logger sets them; restored after the test
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file: a log of LevelDB with a head of 7 bytes, whose entries are wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    content, place, held = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for a head in this block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        held += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            yield record
            held = b""


@pytest.mark.external
def test_wandb_reads_every_figure_once(home: Path) -> None:
    import wandb

    be_killed_twice("wandb", home)
    wandb.teardown()  # its own process writes on after finish() has returned
    files = list(home.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    found = []
    for record in wandb_records(files[0]):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found += [((name, items["_step"]), value) for name, value in items.items() if not name.startswith("_")]
    assert len(found) == len(EXPECTED)
    assert dict(found) == EXPECTED


@pytest.mark.external
def test_mlflow_reads_every_figure_once(home: Path) -> None:
    from mlflow.tracking import MlflowClient

    be_killed_twice("mlflow", home)
    client = MlflowClient(tracking_uri=(home / "mlflow").as_uri())
    run = client.get_run(json.loads((home / "loggers.json").read_text())["mlflow"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params == {"recipe/lr": "0.0001", "recipe/stages": "all:3", "model": "nano"}
    history = [(m.key, m.step, m.value) for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name)]
    assert len(history) == len(EXPECTED)
    assert {(name, step): value for name, step, value in history} == EXPECTED
    assert len(client.search_runs([run.info.experiment_id])) == 1

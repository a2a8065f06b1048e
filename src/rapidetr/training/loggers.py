"""Figures of a run for TensorBoard, Weights & Biases and MLflow, each epoch once, however often the run was cut off.

The history in the run's state decides what has happened. What lies in local files is written anew from it when a run goes on;
a server is sent only what it does not have.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.training.records import flatten, write_json

PROJECT = "rapidetr"
IDS = "loggers.json"  # in the run folder: under which names the run is known elsewhere
Row = dict[str, Any]  # one record of a run's history; `step` is its place on the axis


class Logger(Protocol):
    """Opened with what has happened so far, then told one row after each epoch."""

    def log(self, row: Row) -> None: ...

    def close(self) -> None: ...


def figures(row: Row) -> dict[str, float]:
    """The numbers of a row by name, such as ema/AP; what is undefined is left out."""
    return {name: float(value) for name, value in flatten(row).items() if isinstance(value, int | float)}


class TensorBoard:
    """Event files in `folder`/tensorboard."""

    def __init__(self, folder: Path, plan: dict[str, Any], rows: Iterable[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        shutil.rmtree(place, ignore_errors=True)
        self.writer = SummaryWriter(str(place))
        self.writer.add_text("recipe", f"```\n{json.dumps(plan, indent=1)}\n```")
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        for name, value in figures(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases in `folder`/wandb; without network unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, plan: dict[str, Any], rows: Iterable[Row]) -> None:
        import wandb

        name = _known_as(folder, "wandb") or _remember(folder, "wandb", uuid4().hex[:12])
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        for old in (folder / "wandb").glob(f"offline-run-*-{name}"):
            shutil.rmtree(old)
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        where: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "name": folder.name, "dir": str(folder)}
        self.run = wandb.init(**where, id=name, mode=mode, resume="allow", config=plan, settings=settings)
        begin = self.run.starting_step  # 0 unless a server has rows already
        for row in rows:
            if row["step"] >= begin:
                self.log(row)

    def log(self, row: Row) -> None:
        self.run.log(figures(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of MLflow, in files under `folder`/mlflow unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, folder: Path, plan: dict[str, Any], rows: Iterable[Row]) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if not address:  # MLflow 3 wants to be told that plain files are meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (folder / "mlflow").absolute().as_uri()
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=address)
        self.run = _known_as(folder, "mlflow") or _remember(folder, "mlflow", self._begin(folder.name))
        self.client.update_run(self.run, status="RUNNING")
        params = [Param(name, str(value)[:500]) for name, value in flatten(plan).items()]  # the same ones may be sent again
        for i in range(0, len(params), 100):
            self.client.log_batch(self.run, params=params[i : i + 100])
        names = self.client.get_run(self.run).data.metrics
        there = {(name, metric.step) for name in names for metric in self.client.get_metric_history(self.run, name)}
        for row in rows:
            self.log(row, there)

    def _begin(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        return str(self.client.create_run(place, run_name=name).info.run_id)

    def log(self, row: Row, there: Iterable[tuple[str, int]] = ()) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), row["step"]
        metrics = [Metric(name, value, now, step) for name, value in figures(row).items() if (name, step) not in there]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run)


KINDS: dict[str, tuple[type[TensorBoard] | type[Wandb] | type[Mlflow], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (Wandb, "wandb"),
    "mlflow": (Mlflow, "mlflow"),
}


def check_loggers(names: str | Iterable[str]) -> tuple[str, ...]:
    """The names in `names`, a list or a text with commas; ConfigError for an unknown one, BackendMissing without its package."""
    chosen = tuple(dict.fromkeys(name.strip() for name in (names.split(",") if isinstance(names, str) else names) if name.strip()))
    for name in chosen:
        if name not in KINDS:
            raise ConfigError(f"unknown logger {name!r}; there are {', '.join(KINDS)}")
        if find_spec(KINDS[name][1]) is None:
            raise BackendMissing(f"the logger {name} needs {name}; install it with: pip install 'rapidetr[loggers]'")
    return chosen


def open_loggers(names: Iterable[str], folder: Path, plan: dict[str, Any], rows: Iterable[Row]) -> list[Logger]:
    """Loggers that hold `rows`, each once; `plan` is what they show as the configuration."""
    return [KINDS[name][0](folder, plan, list(rows)) for name in names]


def _known_as(folder: Path, kind: str) -> str | None:
    file = folder / IDS
    return json.loads(file.read_text("utf-8")).get(kind) if file.exists() else None


def _remember(folder: Path, kind: str, name: str) -> str:
    file = folder / IDS
    held = json.loads(file.read_text("utf-8")) if file.exists() else {}
    write_json(file, {**held, kind: name})
    return name

"""A registry's pointer moves, and the server follows; what cannot be loaded changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidetr.core.config import variant
from rapidetr.core.errors import CheckpointError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.artifact import Manifest, write_artifact
from rapidetr.serving.limits import ServeLimits
from rapidetr.serving.reload import Reloader, is_registry
from rapidetr.serving.served import Served
from rapidetr.serving.service import Service


def manifest() -> Manifest:
    nano = variant("nano")
    return Manifest(
        files={}, config=nano.to_dict(), labels=LabelSpace.coco().to_dict(), preprocessing=Preprocessing().to_dict(), engine="torch",
        versions={}, device="cpu", precision="float32", size_hw=nano.size_hw, decoder_layers=2, queries=300, license="Apache-2.0",
        source={"name": "mine.safetensors", "sha256": "0" * 64}, command="", parameters={}, created="2026-01-01",
    )  # fmt: skip


def point(registry: Path, id: str) -> None:
    """As a promotion does: written aside, then renamed."""
    aside = registry / ".current.new"
    aside.write_text(f"{id}\n{{}}\n")
    aside.rename(registry / "current")


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    lock = json.dumps({"lock": 1, "environment": {}}).encode()
    for id in ("one", "two", "bad"):
        files = {
            "best.safetensors": id.encode(),
            "lock.json": lock,
            "verdict.json": json.dumps({"accepted": id != "bad", "more": 1}).encode(),
        }
        write_artifact(folder / "artifacts" / id, files, manifest())
    point(folder, "one")
    return folder


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def follow(registry: Path, engine, make_served: Callable[..., Served]) -> Callable[..., tuple[Service, Reloader, Clock, list[str]]]:
    def begin() -> tuple[Service, Reloader, Clock, list[str]]:
        tried: list[str] = []

        def load(folder: Path) -> Served:
            tried.append(folder.name)
            if folder.name == "bad":
                raise CheckpointError("bad: not the weights that were promised")
            made = make_served(engine, folder.name)
            made.artifact = folder
            return made

        service, clock = Service(load(registry / "artifacts" / "one"), ServeLimits()), Clock()
        tried.clear()
        return service, Reloader(str(registry / "current"), service, load, now=clock), clock, tried

    return begin


def test_what_is_a_registry(registry: Path) -> None:
    assert [is_registry(str(path)) for path in (registry, registry / "current")] == [True, True]
    assert [is_registry(str(path)) for path in (registry / "artifacts" / "one", registry / "artifacts", "pico")] == [False] * 3


def test_promote_and_back(follow, registry: Path) -> None:
    service, reloader, _, tried = follow()
    assert not reloader.check()
    first = service.model
    point(registry, "two")
    assert reloader.check()
    assert (service.model.id, sorted(service.model.costs.seconds)[0]) == ("two", 1)  # warmed up before it was used
    assert service.model.card()["verdict"] == {"accepted": True, "accuracy": None, "checks": None}
    assert not reloader.check()
    point(registry, "one")
    assert reloader.check()
    assert (service.model.id, service.model is first) == ("one", False)
    assert tried == ["two", "one"]
    assert service.reload_state == {"follows": str(registry / "current"), "problem": None}
    assert b'rapidetr_reloads_total{outcome="done"} 2.0' in service.metrics.text()
    assert b'rapidetr_model{model="one"} 1.0' in service.metrics.text()
    assert b'rapidetr_model{model="two"}' not in service.metrics.text()


def test_what_cannot_be_loaded_is_told_and_tried_again_later(follow, registry: Path) -> None:
    service, reloader, clock, tried = follow()
    point(registry, "bad")
    for second in range(40):
        clock.time = second
        assert not reloader.check()
    assert service.model.id == "one"
    assert len(tried) == 4  # at 0, 4, 12 and 28 s
    problem = {"what": "bad", "message": "CheckpointError: bad: not the weights that were promised", "failures": 4}
    assert service.reload_state["problem"] == problem
    assert b'rapidetr_reloads_total{outcome="failed"} 4.0' in service.metrics.text()
    point(registry, "two")
    assert reloader.check()  # another one is not made to wait
    assert service.reload_state["problem"] is None


def test_a_pointer_that_is_damaged_for_a_while(follow, registry: Path) -> None:
    service, reloader, _, _ = follow()
    (registry / "current").write_text("../../etc\n")
    assert not reloader.check()
    assert not reloader.check()
    assert "expected an artifact of artifacts/" in service.reload_state["problem"]["message"]
    assert b'rapidetr_reloads_total{outcome="failed"} 1.0' in service.metrics.text()
    point(registry, "one")
    assert not reloader.check()
    assert service.reload_state["problem"] is None
    assert service.model.id == "one"


def test_no_request_fails_while_models_change(start, follow, registry: Path, make_served, engine, picture: Callable[..., bytes]) -> None:
    """Four clients ask without a pause while the pointer moves twenty times; every answer names one of the two models."""
    first = make_served(engine, "one")
    first.artifact = registry / "artifacts" / "one"
    client, service = start(model=first)

    def load(folder: Path) -> Served:
        made = make_served(engine, folder.name)
        made.artifact = folder
        return made

    reloader, stop, answers = Reloader(str(registry), service, load), threading.Event(), list[Any]()

    def ask() -> None:
        while not stop.is_set():
            answers.append(
                client.post("/v1/predict", content=picture(51), headers={"content-type": "image/png"}, params={"threshold": 0.1})
            )

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for change in range(20):
            point(registry, ("two", "one")[change % 2])
            before = len(answers)
            assert reloader.check()
            while len(answers) < before + 3:
                stop.wait(0.002)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"] for answer in answers} == {"one", "two"}
    assert {answer.json()["images"][0]["detections"][1]["score"] for answer in answers} == {0.2}

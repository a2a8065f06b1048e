"""The registry: every change happens as a whole or not at all, whoever dies or writes at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import rapidetr
from rapidetr.core.config import variant
from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError, HashMismatch
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.registry import Entry, Registry
from rapidetr.runtime.artifact import Manifest, open_artifact, write_artifact
from rapidetr.runtime.places import find_artifact

ACCEPTED = {"verdict.json": b'{"accepted": true}'}


def manifest(precision: str) -> Manifest:
    nano = variant("nano")
    return Manifest(
        files={}, config=nano.to_dict(), labels=LabelSpace.coco().to_dict(), preprocessing=Preprocessing().to_dict(), engine="torch",
        versions={}, device="cpu", precision=precision, size_hw=nano.size_hw, decoder_layers=2, queries=300, license="Apache-2.0",
        source={"name": "mine.safetensors", "sha256": "0" * 64}, command="", parameters={}, created="2026-01-01",
    )  # fmt: skip


def make(folder: Path, precision: str) -> Path:
    """An artifact as far as a registry can tell; nobody looks into its model."""
    lock = json.dumps({"lock": 1, "environment": {}}).encode()
    return write_artifact(folder, {"best.safetensors": precision.encode(), "lock.json": lock}, manifest(precision)).path


class Clock:
    """A minute between any two looks."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(minutes=1)
        return self.moment


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", now=Clock(), user=lambda: "ann")


@pytest.fixture
def ids(registry: Registry, tmp_path: Path) -> list[str]:
    """A baseline and two accepted artifacts."""
    return [registry.add(make(tmp_path / p, p), files=ACCEPTED, why=f"try {p}") for p in ("float32", "bfloat16", "int8")]


def test_the_first_artifact_is_baseline_and_current(registry: Registry, ids: list[str]) -> None:
    assert [id.rpartition("-")[0] for id in ids] == [f"nano-384x384-torch-{p}" for p in ("float32", "bfloat16", "int8")]
    assert (registry.current, registry.baseline, registry.ids()) == (ids[0], ids[0], ids)
    assert registry.history()[0] == Entry(1, "baseline", None, ids[0], "ann", "2026-01-01T00:01:00+00:00", "try float32")
    assert [entry.action for entry in registry.history()] == ["baseline", "add", "add"]
    assert open_artifact(registry.path / "artifacts" / ids[1]) == registry.open(ids[1])
    assert registry.open(ids[1]).files["verdict.json"].read_bytes() == ACCEPTED["verdict.json"]


def test_promote_and_several_rollbacks(registry: Registry, ids: list[str]) -> None:
    a, b, c = ids
    done = registry.promote(b, who="bob", why="faster: 41 → 23 ms\nsecond line")
    assert done == Entry(4, "promote", a, b, "bob", "2026-01-01T00:04:00+00:00", "faster: 41 → 23 ms\nsecond line")
    registry.promote(c)
    assert registry.current == c
    assert [registry.rollback(why="it shakes").after, registry.current] == [b, b]
    registry.promote(c)
    assert [registry.rollback().after, registry.rollback().after, registry.current] == [b, a, a]
    with pytest.raises(ConfigError, match=f"nothing was current before {a}; promote another one"):
        registry.rollback()
    assert [entry.number for entry in registry.history()] == list(range(1, 10))
    assert registry.baseline == a


def test_plain_tools_can_read_it(registry: Registry, ids: list[str]) -> None:
    registry.promote(ids[1], why="why not")
    lines = (registry.path / "current").read_text().splitlines()
    assert lines[0] == ids[1]
    history = [json.loads(line) for line in (registry.path / "history.jsonl").read_text().splitlines()]
    assert json.loads(lines[1]) == history[-1] == registry.history()[-1].to_dict()
    assert list(history[-1]) == ["number", "action", "before", "after", "who", "when", "why"]
    assert find_artifact(registry.path / "current") == registry.path / "artifacts" / ids[1]


def test_baseline_and_current_are_never_removed(registry: Registry, ids: list[str], tmp_path: Path) -> None:
    a, b, c = ids
    registry.promote(b)
    registry.promote(c)
    for id, what in ((a, "a baseline"), (c, "current")):
        with pytest.raises(ConfigError, match=f"{id} is {what} and stays"):
            registry.remove(id)
    newer = registry.add(make(tmp_path / "newer", "float64"), baseline=True)
    assert (registry.baseline, registry.current) == (newer, c)
    for id in (a, newer):
        with pytest.raises(ConfigError, match="a baseline and stays"):
            registry.remove(id)
    registry.remove(b, why="too old")
    assert registry.ids() == [a, c, newer]
    assert not (registry.path / "artifacts" / b).exists()
    assert registry.rollback().after == a  # over the one that is gone
    assert registry.history()[-2].why == "too old"


def test_a_rollback_does_not_stay_where_it_is(registry: Registry, ids: list[str]) -> None:
    a, b, _ = ids
    for id in (b, a):
        registry.promote(id)
    registry.promote(ids[2])
    registry.rollback()
    registry.remove(ids[2])
    registry.rollback()
    registry.promote(ids[0])
    registry.remove(b)  # a, a, is one step
    with pytest.raises(ConfigError, match="nothing was current before"):
        registry.rollback()


def test_only_what_the_gate_accepted_is_promoted(registry: Registry, ids: list[str], tmp_path: Path) -> None:
    folder = make(tmp_path / "x", "float16")
    plain = registry.add(folder)
    refused = registry.add(folder, files={"verdict.json": b'{"accepted": false}'})
    broken = registry.add(folder, files={"verdict.json": b"[]"})
    for id, message in (
        (plain, f"{plain} has no verdict; expected a baseline, or an artifact that the gate accepted"),
        (refused, f"{refused} was refused by the gate"),
        (broken, "not a verdict"),
        ("nix", f"has no artifact 'nix'; there are: {ids[0]}, {ids[1]}"),
        (ids[0], f"{ids[0]} is current already"),
    ):
        with pytest.raises(ConfigError, match=message):
            registry.promote(id)
    assert registry.current == ids[0]
    second = registry.add(make(tmp_path / "y", "float64"), baseline=True)
    assert registry.promote(second).after == second


def test_damage_is_never_pointed_at(registry: Registry, ids: list[str]) -> None:
    a, b, c = ids
    registry.promote(b)
    (registry.path / "artifacts" / a / "best.safetensors").write_bytes(b"float23")
    (registry.path / "artifacts" / c / "best.safetensors").unlink()
    with pytest.raises(HashMismatch, match=r"missing: best\.safetensors"):
        registry.promote(c)
    with pytest.raises(HashMismatch, match=r"changed: best\.safetensors"):
        registry.rollback()
    assert registry.current == b


def test_the_same_artifact_again_changes_nothing(registry: Registry, ids: list[str], tmp_path: Path) -> None:
    before = registry.history()
    assert registry.add(tmp_path / "int8", files=ACCEPTED) == ids[2]
    assert registry.history() == before
    assert {p.name for p in (registry.path / "artifacts").iterdir()} == set(ids)


def test_a_folder_that_is_no_registry(tmp_path: Path) -> None:
    nowhere = Registry(tmp_path / "typo")
    assert nowhere.history() == []
    with pytest.raises(CheckpointMissing, match="typo: is no registry; expected a folder to which artifacts were added"):
        nowhere.promote("x")
    for name in ("current", "baseline"):
        with pytest.raises(CheckpointMissing, match="nothing was added to this registry yet"):
            getattr(nowhere, name)
    assert not (tmp_path / "typo").exists()


def test_a_history_that_was_cut_is_told(registry: Registry, ids: list[str]) -> None:
    history = registry.path / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:1]))
    with pytest.raises(CheckpointError, match=r"history\.jsonl: entries are missing before number 3; restore it from a copy"):
        registry.history()
    history.write_text("rubbish\n")
    with pytest.raises(CheckpointError, match=r"history\.jsonl: cannot be read"):
        registry.promote(ids[1])
    history.write_text("".join(lines))
    (registry.path / "current").write_text(f"{ids[0]}\n")
    with pytest.raises(CheckpointError, match=r"current: cannot be read .* restore it: artifact, line break, last line of history\.jsonl"):
        registry.history()


def test_a_pointer_that_was_lost_costs_no_history(registry: Registry, ids: list[str], tmp_path: Path) -> None:
    history, fresh = registry.path / "history.jsonl", make(tmp_path / "fresh", "float16")
    before = history.read_bytes()
    (registry.path / "current").unlink()
    told = r"current: is gone, but history\.jsonl has entries; restore it: artifact, line break, last line of history\.jsonl"
    changes = (registry.history, lambda: registry.add(fresh), lambda: registry.promote(ids[1]), registry.rollback)
    for change in changes:
        with pytest.raises(CheckpointError, match=told):
            change()
    with pytest.raises(CheckpointMissing, match="current: no such file; restore it: artifact, line break"):
        rapidetr.load(registry.path / "current")
    assert history.read_bytes() == before
    (registry.path / "current").write_text(f"{ids[0]}\n{before.decode().splitlines()[-1]}\n")  # as told
    assert registry.promote(ids[1]).number == 4


def test_a_manifest_that_was_changed_is_told_by_its_id(registry: Registry, ids: list[str]) -> None:
    def change(id: str) -> None:
        path = registry.path / "artifacts" / id / "manifest.json"
        path.write_text(path.read_text().replace('"queries": 300', '"queries": 7'))

    a, b, c = ids
    registry.promote(b)
    for id in (a, b, c):
        change(id)
    told = r"changed: manifest\.json; its name in the registry tells another one"
    for use in (lambda: registry.promote(c), registry.rollback, lambda: rapidetr.load(registry.path / "current")):
        with pytest.raises(HashMismatch, match=told):
            use()
    assert registry.current == b


def test_another_writer_is_waited_for(registry: Registry, ids: list[str]) -> None:
    from filelock import FileLock

    with FileLock(registry.path / ".lock"), pytest.raises(ConfigError, match=r"another process has been writing for 0\.01 s; try again"):
        Registry(registry.path, timeout_s=0.01).promote(ids[1])


def test_threads_write_one_after_another(registry: Registry, ids: list[str], tmp_path: Path) -> None:
    sources = [make(tmp_path / f"t{i}", f"p{i}") for i in range(6)]
    threads = [threading.Thread(target=lambda s=s: Registry(registry.path).add(s, who="t")) for s in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.number for entry in registry.history()] == list(range(1, 10))
    assert len(registry.ids()) == 9
    assert all(registry.open(id) for id in registry.ids())


# A process that does one thing to a registry and is killed before its n-th look at a file, for every n, without a chance to clean
# up. The audit hook sees every open, rename, mkdir, remove; fsync, close and writes happen between two of them.
CRASH = """
import json, os, signal, shutil, sys
from pathlib import Path
from rapidetr.deployment.registry import Registry
from rapidetr.runtime.artifact import open_artifact
from rapidetr.runtime.places import find_artifact

whole, action, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
work = whole.parent / "work"

def perform():
    registry = Registry(work, user=lambda: "x")
    if action == "add":
        registry.add(target, files={"verdict.json": b'{"accepted": true}'})
    else:
        getattr(registry, action)(*[target] if target else [])

def state():
    registry = Registry(work)
    entries = registry.history()
    current = open_artifact(find_artifact(work / "current")) if entries else None
    for id in registry.ids():
        registry.open(id)
    return len(entries), current and current.path.name, registry.ids()

def attempt(number):
    # True if the process was killed at its step `number`, False if it came to its end
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work) if whole.exists() else work.mkdir()
    child = os.fork()
    if child == 0:
        count = 0
        def hook(event, arguments):
            nonlocal count
            if event == "open" or event.startswith(("os.", "shutil.")):
                if str(work) in str(arguments) or event == "os.rmdir":
                    count += 1
                    if count > number:
                        os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        perform()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)

if action == "add" and not whole.exists():
    before = (0, None, [])
else:
    shutil.copytree(whole, work)
    before = state()
attempt(10**9)
after = state()
assert before != after
seen, number = [], 0
while attempt(number):
    found = state()
    assert found in (before, after), (number, found, before, after)
    seen.append(found == after)
    if found == before:
        perform()  # who starts again is not in the way of what was left
    else:
        Registry(work).add(sys.argv[4], files={"verdict.json": b"{}"})  # the next one goes on
        assert state()[0] == after[0] + 1
    if found == before:
        assert state() == after, (number, state(), after)
    written = [json.loads(line)["number"] for line in (work / "history.jsonl").read_text().splitlines()]
    assert written == list(range(1, len(written) + 1)) and len(written) == state()[0]
    assert not [p for p in (work / "artifacts").iterdir() if p.name not in state()[2]], "rubbish was left"
    number += 1
assert seen == sorted(seen) and True in seen and False in seen, seen  # one moment parts the old from the new
print(number)
"""


@pytest.mark.slow
@pytest.mark.parametrize("action", ["add", "first add", "promote", "rollback", "remove"])
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_process_that_is_killed_at_any_step_leaves_the_old_or_the_new(
    registry: Registry, ids: list[str], tmp_path: Path, action: str
) -> None:
    registry.promote(ids[1])
    fresh = str(make(tmp_path / "fresh", "float16"))
    target = {"promote": ids[2], "rollback": "", "remove": ids[2]}.get(action, fresh)
    other = make(tmp_path / "other", "float64")
    whole = tmp_path / "nix" if action == "first add" else registry.path
    words = [str(whole), action.removeprefix("first "), target, str(other)]
    done = subprocess.run([sys.executable, "-c", CRASH, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8  # steps


def test_entries_are_strict() -> None:
    entry = Entry(1, "add", None, "x", "ann", "2026-01-01", "")
    assert Entry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry
    with pytest.raises(ConfigError, match="action is 'steal'; expected one of baseline, add, promote, rollback, remove"):
        replace(entry, action="steal")

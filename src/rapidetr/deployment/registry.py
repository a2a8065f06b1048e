"""The artifacts of one place, one pointer to the one in use, and a history of who moved it, when and why.

    registry/current           line 1: the artifact in use (`head -1 current`); line 2: the newest entry of the history, as JSON
    registry/history.jsonl     every entry, one a line
    registry/artifacts/<id>/   as runtime/artifact.py writes them

Replacing `current` is the one moment at which anything happens: it moves the pointer and writes the entry in one step, and
history.jsonl is completed after that. Who dies in between leaves a file that lags by one entry, which readers take from
`current` and the next writer puts in its place. Folders that no entry names do not count.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError
from rapidetr.core.reports import Strict
from rapidetr.runtime.artifact import VERDICT, Artifact, open_artifact, sync, write_artifact
from rapidetr.runtime.host import attempt
from rapidetr.runtime.lock import sha256_of
from rapidetr.runtime.places import HISTORY, MANIFEST, POINTER, RESTORE, SHELF, read_pointer

GUARD = ".lock"
ACTIONS = ("baseline", "add", "promote", "rollback", "remove")


@dataclass(frozen=True)
class Entry(Strict):
    """One line of the history. `baseline` and `add` bring `after`, `remove` takes `before` away, the others move the pointer."""

    number: int  # from 1
    action: str
    before: str | None
    after: str | None
    who: str
    when: str  # ISO 8601, UTC
    why: str  # as given

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ConfigError(f"action is {self.action!r}; expected one of {', '.join(ACTIONS)}")


class Registry:
    """A folder of artifacts. Processes and threads may use it at the same time; each change happens as a whole or not at all."""

    def __init__(
        self,
        path: str | Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        user: Callable[[], str] = lambda: attempt(getpass.getuser) or "unknown",
        timeout_s: float = 60.0,
    ) -> None:
        self.path, self._now, self._user, self._timeout_s = Path(path), now, user, timeout_s

    @property
    def current(self) -> str:
        """The artifact in use; CheckpointMissing in a registry to which nothing was added."""
        return read_pointer(self.path)

    @property
    def baseline(self) -> str:
        """The newest baseline: the unoptimized artifact that others are judged against. No baseline is ever removed."""
        found = [entry.after for entry in self.history() if entry.action == "baseline"]
        if not found:
            raise CheckpointMissing(f"{self.path}: nothing was added to this registry yet")
        return str(found[-1])

    def ids(self) -> list[str]:
        """Artifacts that are here, oldest first."""
        return list(_replay(self.history()).kept)

    def open(self, id: str) -> Artifact:
        """An artifact of this registry, verified; ConfigError names those there are."""
        self._check(id, _replay(self.history()))
        return open_artifact(self.path / SHELF / id)

    def history(self) -> list[Entry]:
        """All that ever happened, oldest first."""
        newest = self._newest()
        if newest is None:
            if self._written():  # the pointer is always written first
                raise CheckpointError(f"{self.path / POINTER}: is gone, but {HISTORY} has entries; {RESTORE}")
            return []
        entries = [entry for entry in self._written() if entry.number < newest.number]
        if [entry.number for entry in entries] != list(range(1, newest.number)):
            raise CheckpointError(f"{self.path / HISTORY}: entries are missing before number {newest.number}; restore it from a copy")
        return [*entries, newest]

    def add(
        self,
        artifact: str | Path,
        *,
        files: Mapping[str, str | Path | bytes] | None = None,
        baseline: bool = False,
        who: str | None = None,
        why: str = "",
    ) -> str:
        """The id of a copy of `artifact` in here; it is not promoted. `files` are put in with it, such as its verdict.json.

        The first one is a baseline whatever is said, and current. The same artifact again changes nothing.
        """
        given = open_artifact(artifact)
        (self.path / SHELF).mkdir(parents=True, exist_ok=True)
        with self._alone() as (entries, state):
            shutil.rmtree(self.path / SHELF / ".new", ignore_errors=True)  # of a process that died
            copy = write_artifact(self.path / SHELF / ".new", {**given.files, **(files or {})}, given.manifest).path
            id = _name(given, copy)
            if id in state.kept:
                shutil.rmtree(copy)
                return id
            shutil.rmtree(self.path / SHELF / id, ignore_errors=True)  # the same, before its entry was written
            os.rename(copy, self.path / SHELF / id)
            sync(self.path / SHELF)
            action = "baseline" if baseline or not entries else "add"
            self._commit(entries, state.current or id, (action, None, id), who, why)
        return id

    def promote(self, id: str, *, who: str | None = None, why: str = "") -> Entry:
        """Point to `id`. ConfigError unless it is here, is not current, and is a baseline or has a verdict that accepts it."""
        with self._alone() as (entries, state):
            self._check(id, state)
            if id == state.current:
                raise ConfigError(f"{self.path}: {id} is current already")
            self._admit(id, state)
            return self._commit(entries, id, ("promote", state.current, id), who, why)

    def rollback(self, *, who: str | None = None, why: str = "") -> Entry:
        """Point to what was current before; once more goes one step further. ConfigError where nothing was."""
        with self._alone() as (entries, state):
            if len(state.stack) < 2:
                raise ConfigError(f"{self.path}: nothing was current before {state.current or 'the first artifact'}; promote another one")
            target = state.stack[-2]
            open_artifact(self.path / SHELF / target)
            return self._commit(entries, target, ("rollback", state.current, target), who, why)

    def remove(self, id: str, *, who: str | None = None, why: str = "") -> Entry:
        """Delete an artifact that is neither current nor a baseline."""
        with self._alone() as (entries, state):
            self._check(id, state)
            if id == state.current or id in state.baselines:
                raise ConfigError(f"{self.path}: {id} is {'current' if id == state.current else 'a baseline'} and stays")
            entry = self._commit(entries, str(state.current), ("remove", id, None), who, why)
            shutil.rmtree(self.path / SHELF / id, ignore_errors=True)
            return entry

    @contextmanager
    def _alone(self) -> Iterator[tuple[list[Entry], _State]]:
        """The history and what follows from it, while nobody else writes."""
        if not (self.path / SHELF).is_dir():
            raise CheckpointMissing(f"{self.path}: is no registry; expected a folder to which artifacts were added")
        try:
            with FileLock(self.path / GUARD, timeout=self._timeout_s):
                entries = self.history()
                state = _replay(entries)
                for id in state.removed:  # and still here if a process died
                    shutil.rmtree(self.path / SHELF / id, ignore_errors=True)
                yield entries, state
        except Timeout:
            raise ConfigError(f"{self.path}: another process has been writing for {self._timeout_s:g} s; try again") from None

    def _check(self, id: str, state: _State) -> None:
        if id not in state.kept:
            raise ConfigError(f"{self.path}: has no artifact {id!r}; there are: {', '.join(state.kept) or 'none'}")

    def _admit(self, id: str, state: _State) -> None:
        artifact = open_artifact(self.path / SHELF / id)
        if id in state.baselines:
            return
        if VERDICT not in artifact.manifest.files:
            raise ConfigError(f"{self.path}: {id} has no verdict; expected a baseline, or an artifact that the gate accepted")
        try:
            accepted = json.loads(artifact.files[VERDICT].read_text(encoding="utf-8"))["accepted"]
        except (ValueError, KeyError, TypeError) as problem:
            raise ConfigError(f"{artifact.files[VERDICT]}: not a verdict ({problem!r}); judge the artifact again") from None
        if accepted is not True:
            raise ConfigError(f"{self.path}: {id} was refused by the gate, {artifact.files[VERDICT]} says why; judge it with other limits")

    def _commit(self, entries: list[Entry], current: str, move: tuple[str, str | None, str | None], who: str | None, why: str) -> Entry:
        when = self._now().isoformat(timespec="seconds")
        entry = Entry(len(entries) + 1, *move, self._user() if who is None else who, when, why)
        if len(self._written()) < len(entries):  # the last writer died
            self._write(HISTORY, "".join(map(_line, entries)))
        self._write(POINTER, f"{current}\n{_line(entry)}")
        self._write(HISTORY, "".join(map(_line, [*entries, entry])))
        return entry

    def _newest(self) -> Entry | None:
        path = self.path / POINTER
        try:
            return Entry.from_dict(json.loads(path.read_text(encoding="utf-8").partition("\n")[2]))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as problem:
            raise CheckpointError(f"{path}: cannot be read ({problem}); {RESTORE}") from None

    def _written(self) -> list[Entry]:
        path = self.path / HISTORY
        try:
            return [Entry.from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except (ValueError, OSError) as problem:
            raise CheckpointError(f"{path}: cannot be read ({problem}); restore it from a copy") from None

    def _write(self, name: str, text: str) -> None:
        """Aside, onto the disk, into place."""
        part = self.path / f".{name}.part"
        part.write_text(text, encoding="utf-8", newline="\n")
        sync(part)
        os.replace(part, self.path / name)
        sync(self.path)


@dataclass
class _State:
    """What a history leads to."""

    kept: dict[str, None] = field(default_factory=dict)  # artifacts that are here, oldest first
    removed: set[str] = field(default_factory=set)
    baselines: set[str] = field(default_factory=set)
    stack: list[str] = field(default_factory=list)  # current last, what was current before it in front of it

    @property
    def current(self) -> str | None:
        return self.stack[-1] if self.stack else None


def _replay(entries: Iterable[Entry]) -> _State:
    state = _State()
    for entry in entries:
        before, after = str(entry.before), str(entry.after)
        if entry.action in ("baseline", "add"):
            state.kept[after] = None
            state.removed.discard(after)
            state.baselines |= {after} if entry.action == "baseline" else set()
            state.stack = state.stack or [after]
        elif entry.action == "promote":
            state.stack.append(after)
        elif entry.action == "rollback":
            state.stack.pop()
        else:
            del state.kept[before]
            state.removed.add(before)
            left = [id for id in state.stack if id != before]
            state.stack = [id for id, following in zip(left, [*left[1:], ""], strict=True) if id != following]
    return state


def _name(artifact: Artifact, folder: Path) -> str:
    """What people can tell apart, then eight digits of what it is."""
    m = artifact.manifest
    words = f"{m.config['name']}-{m.size_hw[0]}x{m.size_hw[1]}-{m.engine}-{m.precision}"
    return f"{re.sub(r'[^A-Za-z0-9_.+]+', '-', words).strip('-.+')[:80]}-{sha256_of(folder / MANIFEST)[:8]}"


def _line(entry: Entry) -> str:
    return json.dumps(entry.to_dict()) + "\n"

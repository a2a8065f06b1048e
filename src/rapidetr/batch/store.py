"""A folder for results on any file system that fsspec knows; every file in it is whole or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.runtime.artifact import sync

LOCK = ".lock"


def open_place(place: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a path or an address such as s3://bucket/photos."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(place)
    except ImportError as problem:
        raise BackendMissing(f"{place}: needs a package that is not installed ({problem}); install it with pip") from None
    except ValueError as problem:
        raise ConfigError(f"{place}: no file system is known for it ({problem}); expected a path, or an address such as s3://...") from None


def is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


class Store:
    """Names in it are relative, with / between folders."""

    def __init__(self, place: str) -> None:
        self.fs, self.root = open_place(place)
        self.local = is_local(self.fs)
        self.url: str = self.root if self.local else self.fs.unstrip_protocol(self.root)  # holds wherever a process runs

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """FileNotFoundError where it is not there."""
        return self.fs.cat_file(self.path(name), start=start, end=stop)

    def open(self, name: str) -> Any:
        return self.fs.open(self.path(name), "rb")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process is in here; ConfigError where one is. The lock falls with the process that holds it.

        For folders of a disk alone: object stores know no locks, and nothing is guarded there.
        """
        if not self.local:
            yield
            return
        Path(self.root).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path(LOCK), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{self.url}: another process writes results there; wait for it, or choose another --out") from None
        try:
            yield
        finally:
            lock.release()

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file of a folder, by its name there."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}

    def write(self, name: str, data: bytes) -> None:
        if self.local:
            with self.writing(name) as file:
                file.write(data)
        else:
            self.fs.pipe_file(self.path(name), data)  # object stores show an object when all of it has arrived

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to fill; on a local disk it appears under its name when it is complete and safe."""
        if not self.local:
            with self.fs.open(self.path(name), "wb") as remote:
                yield remote
            return
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # two actors may hold one shard while Ray takes one for dead
        try:
            with part.open("wb") as file:
                yield file
            sync(part)
            os.replace(part, path)
            sync(path.parent)
        finally:
            part.unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        """Remove what killed processes left."""
        for part in Path(self.path(folder)).glob(".*.part") if self.local else ():
            part.unlink(missing_ok=True)

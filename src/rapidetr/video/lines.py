"""Files that are whole or not there, and one of them: a JSON document for each frame."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from rapidetr.core.errors import ConfigError
from rapidetr.video.records import TrackedFrame


class PartFile:
    """A path to write to aside, and to move into place by `finish`; where its writer `failed` or never began, nothing is left."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ConfigError(f"{self.path}: is a folder; expected the name of a file to write")
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.failed = False

    def begin(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.part.touch()

    def finish(self) -> None:
        if self.failed:
            self.part.unlink(missing_ok=True)
        elif self.part.exists():
            os.replace(self.part, self.path)


class JsonLines:
    """A line for each frame; what was written is kept whatever ends the run."""

    def __init__(self, path: str | Path, masks: str) -> None:
        self._file, self._masks = PartFile(path), masks
        self._stream: IO[str] | None = None

    def __enter__(self) -> JsonLines:
        return self

    def add(self, frame: TrackedFrame) -> None:
        if self._stream is None:
            self._file.begin()
            self._stream = self._file.part.open("w", encoding="utf-8", newline="\n")
        self._stream.write(json.dumps(frame.to_dict(self._masks)) + "\n")

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()
        self._file.finish()

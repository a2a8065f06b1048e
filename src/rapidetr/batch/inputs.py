"""What a job is to look at: sources -> numbered shards, and a shard -> its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from glob import has_magic
from typing import Any, Self

from rapidetr.batch.parquet import is_table, read_paths, read_rows, row_cuts, table_parts
from rapidetr.batch.store import is_local, open_place
from rapidetr.core.errors import ImageError, ImageMissing
from rapidetr.pixels.decode import Encoded, ImageLimits, Picture, decode, load_picture
from rapidetr.pixels.find import SUFFIXES
from rapidetr.pixels.read import is_url, one_line

Value = str | bytes | ImageError | None  # a path or an address, bytes of a picture, why there are none, or a hole in a table


@dataclass(frozen=True)
class Shard:
    """Pictures that are done together: `files`, or `count` rows of a Parquet file from row `start`."""

    number: int
    first_id: int  # image_id of its first picture; the first of all is 1
    count: int
    files: tuple[str, ...] = ()
    table: str = ""
    column: str = ""
    start: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value or name in ("number", "first_id", "count")}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        return cls(**{**record, "files": tuple(record.get("files", ()))})

    def items(self) -> Iterator[tuple[int, str, Value]]:
        """(image_id, name, where or what it is) of each picture; a table that can be read no further gives errors."""
        rows = read_rows(self.table, self.column, self.start, self.count) if self.table else iter(())
        problem = ImageError(f"{self.table}: has fewer rows than when it was listed; restore it")
        for i in range(self.count):
            try:
                value: Value = self.files[i] if self.files else next(rows, problem)
            except ImageError as broken:
                value = problem = broken
            yield self.first_id + i, self.name(i), value

    def name(self, i: int) -> str:
        return self.files[i] if self.files else f"{self.table}#{self.start + i}"


def list_shards(sources: Sequence[str], shard_size: int, column: str | None = None, limit: int | None = None) -> Iterator[Shard]:
    """Shards of at most `shard_size` pictures, in the order of the sources, and sorted by name inside a folder or pattern.

    ImageMissing for a source without pictures, before the first shard.
    """
    files = list(dict.fromkeys(file for source in sources for file in expand(source)))
    number, next_id, left = 0, 1, limit
    held: list[str] = []

    def cut(**what: Any) -> Shard:
        nonlocal number, next_id
        shard = Shard(number, next_id, **what)
        number, next_id = number + 1, next_id + shard.count
        return shard

    for part in _parts(files, shard_size, column):
        if left == 0:
            break
        if isinstance(part, str):
            held.append(part)
            left = None if left is None else left - 1
        if held and (len(held) == shard_size or not isinstance(part, str)):
            yield cut(count=len(held), files=tuple(held))
            held = []
        if not isinstance(part, str):
            table, name, start, count = part
            count = count if left is None else min(count, left)
            left = None if left is None else left - count
            yield cut(count=count, table=table, column=name, start=start)
    if held:
        yield cut(count=len(held), files=tuple(held))


def _parts(files: Sequence[str], shard_size: int, column: str | None) -> Iterator[str | tuple[str, str, int, int]]:
    """A path for each picture that has one, (table, column, first row, rows) for pictures that lie in a table as bytes."""
    for file in files:
        if not is_table(file):
            yield file
            continue
        name, holds_bytes = table_parts(file, column)
        if not holds_bytes:
            yield from (resolve(path, file) for path in read_paths(file, name))
            continue
        for start, count in row_cuts(file, shard_size):
            yield file, name, start, count


def resolve(path: str, table: str) -> str:
    """A path of a table, meant from where the table lies unless it is absolute or an address."""
    folder = table.rpartition("/")[0] if "://" in table else os.path.dirname(table)
    return path if "://" in path or os.path.isabs(path) else f"{folder}/{path}"


def expand(source: str) -> list[str]:
    """Pictures and Parquet files of a source: a folder with its subfolders, a pattern, a file, an address; hidden ones left out.

    Local paths come out absolute, others with their protocol. ImageMissing where there is nothing.
    """
    if is_url(source):
        return [source]
    fs, path = open_place(source)
    try:
        if fs.isdir(path):
            found = [file for file in sorted(fs.find(path)) if _wanted(file.removeprefix(path))]
        elif fs.exists(path):
            found = [path]
        else:
            found = [file for file in sorted(fs.glob(path)) if _wanted(file.rsplit("/", 1)[-1])] if has_magic(path) else []
    except Exception as problem:  # drivers of object stores raise their own
        raise ImageMissing(f"{source}: cannot be listed ({one_line(problem)}); check the address, rights and network") from None
    if not found:
        raise ImageMissing(
            f"{source}: holds no pictures; expected a folder, pattern or file that ends in one of {' '.join(SUFFIXES)} .parquet"
        )
    return found if is_local(fs) else [fs.unstrip_protocol(file) for file in found]


def _wanted(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name.lower().endswith((*SUFFIXES, ".parquet"))


def load_item(name: str, value: Value, limits: ImageLimits) -> Picture:
    """The decoded picture; ImageError, ImageMissing."""
    if isinstance(value, ImageError):
        raise value
    if value is None:
        raise ImageError(f"{name} has no picture; expected bytes or a path")
    if isinstance(value, bytes):
        return decode(Encoded(value, name), limits)
    if "://" not in value or is_url(value):
        return load_picture(value, limits)
    return decode(Encoded(fetch(value, limits), name), limits)


def fetch(address: str, limits: ImageLimits) -> bytes:
    """The bytes of an object in a store."""
    try:
        fs, path = open_place(address)
        data: bytes = fs.cat_file(path, start=0, end=limits.max_bytes + 1)
    except FileNotFoundError:
        raise ImageMissing(f"{address} is not there; check the path") from None
    except Exception as problem:  # drivers of object stores raise their own
        raise ImageError(f"{address} cannot be read: {one_line(problem)}; check rights and network") from None
    if len(data) > limits.max_bytes:
        raise ImageError(f"{address} has more than ImageLimits.max_bytes={limits.max_bytes} bytes; raise the limit if you trust it")
    return data

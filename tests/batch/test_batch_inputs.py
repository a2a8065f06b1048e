"""What sources stand for, how they are cut into shards, and what a shard gives back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rapidetr.batch.inputs import Shard, expand, list_shards, load_item
from rapidetr.core.errors import BackendMissing, ConfigError, ImageError, ImageMissing
from rapidetr.pixels.decode import ImageLimits


@pytest.fixture
def memory() -> Iterator[Any]:
    """The empty file system behind memory://."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def table(path: Path, columns: dict[str, Any], rows: int = 1000) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return str(path)


def names(shards: Sequence[Shard]) -> list[str]:
    return [name for shard in shards for _, name, _ in shard.items()]


def check_numbers(shards: Sequence[Shard]) -> None:
    """Shards are numbered, and their ids follow each other from 1 without a hole."""
    assert [s.number for s in shards] == list(range(len(shards)))
    ids = [image_id for shard in shards for image_id, _, _ in shard.items()]
    assert ids == list(range(1, len(ids) + 1))


def test_a_folder_its_subfolders_a_pattern_and_a_file(photos: Path) -> None:
    (photos / "notes.txt").write_text("")
    (photos / ".hidden.png").write_bytes(b"")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes(b"")
    (photos / "a").mkdir()
    (photos / "00.png").rename(photos / "a" / "odd[1].PNG")
    whole = [str(photos / f"{i:02d}.png") for i in range(1, 10)] + [str(photos / "a" / "odd[1].PNG")]
    assert expand(str(photos)) == expand(f"{photos}/") == expand(f"file://{photos}") == sorted(whole)
    assert expand(str(photos / "0[1-3].png")) == whole[:3]
    assert expand(str(photos / "**" / "odd*")) == [whole[-1]]
    assert expand(str(photos / "a" / "odd[1].PNG")) == [whole[-1]]
    assert expand(str(photos / "notes.txt")) == [str(photos / "notes.txt")]  # named, so it is looked at and reported
    assert expand("https://example.com/a.jpg?b=*") == ["https://example.com/a.jpg?b=*"]


def test_local_paths_come_out_absolute(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    assert expand("photos/03.png") == [str(photos / "03.png")]


def test_an_object_store(photos: Path, memory: Any) -> None:
    for file in sorted(photos.iterdir())[:4]:
        memory.pipe_file(f"/bucket/day/{file.name}", file.read_bytes())
    memory.pipe_file("/bucket/day/list.txt", b"")
    found = expand("memory://bucket/day")
    assert found == [f"memory:///bucket/day/0{i}.png" for i in range(4)]
    assert expand("memory://bucket/*/0[12].png") == found[1:3]
    picture = load_item(found[2], found[2], ImageLimits())
    assert picture.source == found[2]
    assert (picture.pixels == load_item("", str(photos / "02.png"), ImageLimits()).pixels).all()
    with pytest.raises(ImageError, match=r"^memory:///bucket/day/00\.png has more than ImageLimits\.max_bytes=99 bytes; raise"):
        load_item(found[0], found[0], ImageLimits(max_bytes=99))
    with pytest.raises(ImageMissing, match=r"^memory://bucket/none\.png is not there; check the path$"):
        load_item("", "memory://bucket/none.png", ImageLimits())


def test_sources_without_pictures(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none", tmp_path / "*.png"):
        with pytest.raises(ImageMissing, match=rf"^{source}: holds no pictures; expected a folder".replace("*", r"\*")):
            expand(str(source))
    with pytest.raises(ConfigError, match=r"^odd://x: no file system is known for it \(Protocol not known: odd\)"):
        expand("odd://x")


def test_a_store_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(place: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(BackendMissing, match=r"^s3://b: needs a package that is not installed \(Install s3fs to access S3\)"):
        expand("s3://b")


@pytest.mark.parametrize(
    ("size", "limit", "counts"), [(3, None, [3, 3, 3, 1]), (3, 5, [3, 2]), (3, 6, [3, 3]), (10, None, [10]), (1, 2, [1, 1])]
)
def test_shards_of_files(photos: Path, size: int, limit: int | None, counts: list[int]) -> None:
    shards = list(list_shards([str(photos), str(photos / "03.png")], size, limit=limit))  # the file is there once
    assert [s.count for s in shards] == counts
    check_numbers(shards)
    assert names(shards) == sorted(map(str, photos.iterdir()))[: sum(counts)]
    assert [Shard.from_dict(s.to_dict()) for s in shards] == shards


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_shards_of_bytes_stay_inside_row_groups(photos: Path, tmp_path: Path, kind: str) -> None:
    """Ten pictures in row groups of 4, shards of 3: 3 + 1, 3 + 1, 2; each row comes once and is its picture."""
    files = sorted(photos.iterdir())
    data = [file.read_bytes() for file in files]
    column = pa.array([{"bytes": d, "path": "x"} for d in data]) if kind == "struct" else pa.array(data, getattr(pa, kind)())
    path = table(tmp_path / "t.parquet", {"label": list(range(10)), "image": column}, rows=4)
    shards = list(list_shards([path], 3))
    assert [(s.start, s.count) for s in shards] == [(0, 3), (3, 1), (4, 3), (7, 1), (8, 2)]
    check_numbers(shards)
    assert [value for shard in shards for _, _, value in shard.items()] == data
    assert names(shards) == [f"{path}#{i}" for i in range(10)]
    assert [s.count for s in list_shards([path], 3, limit=5)] == [3, 1, 1]


def test_many_rows_in_one_row_group(tmp_path: Path) -> None:
    """More rows than are read at once (32), shards that begin and end anywhere in them."""
    data = [bytes([i]) for i in range(100)]
    shards = list(list_shards([table(tmp_path / "t.parquet", {"bytes": data})], 37))
    assert [value for shard in shards for _, _, value in shard.items()] == data


def test_a_table_of_paths_is_read_from_where_it_lies(photos: Path, tmp_path: Path) -> None:
    paths = ["photos/01.png", str(photos / "02.png"), "https://example.com/3.png"]
    shards = list(list_shards([table(tmp_path / "t.parquet", {"path": paths, "n": [1, 2, 3]})], 2))
    assert names(shards) == [str(photos / "01.png"), str(photos / "02.png"), "https://example.com/3.png"]
    assert names(list(list_shards([table(tmp_path / "u.parquet", {"where": paths[:1]})], 2, column="where"))) == [str(photos / "01.png")]


def test_files_and_tables_together(photos: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"bytes": [b"1", b"2"]})
    shards = list(list_shards([str(photos / "0[0-3].png"), path, str(photos / "09.png")], 3))
    assert [(s.count, bool(s.table)) for s in shards] == [(3, False), (1, False), (2, True), (1, False)]
    check_numbers(shards)


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(ImageError, match=r"bad\.parquet: cannot be read as Parquet \(.+\); write it again$"):
        list(list_shards([str(tmp_path / "bad.parquet")], 3))
    path = table(tmp_path / "t.parquet", {"a": [1], "url": [2]})
    with pytest.raises(ImageError, match=r"t\.parquet: column url is int64; expected bytes of pictures \(binary\) or paths \(string\)$"):
        list(list_shards([path], 3))
    with pytest.raises(ImageError, match=r"t\.parquet: has columns a, url; expected b, or name another with --column$"):
        list(list_shards([path], 3, column="b"))


def test_rows_that_went_missing_are_errors_not_holes(photos: Path, tmp_path: Path) -> None:
    data = [file.read_bytes() for file in sorted(photos.iterdir())]
    path = table(tmp_path / "t.parquet", {"bytes": data[:3]})
    (shard,) = list_shards([path], 5)
    table(tmp_path / "t.parquet", {"bytes": [data[0], None]})
    got = [value for _, _, value in shard.items()]
    assert got[:2] == [data[0], None]
    assert str(got[2]) == f"{path}: has fewer rows than when it was listed; restore it"
    os.unlink(path)
    assert len([value for _, _, value in shard.items() if isinstance(value, ImageError)]) == 3
    with pytest.raises(ImageError, match=r"#1 has no picture; expected bytes or a path$"):
        load_item(f"{path}#1", None, ImageLimits())


def test_bytes_are_decoded_as_their_file(photos: Path) -> None:
    with Image.open(photos / "00.png") as image:
        size = image.size
    picture = load_item("t.parquet#0", (photos / "00.png").read_bytes(), ImageLimits())
    assert picture.source == "t.parquet#0"
    assert picture.pixels.shape[:2] == size[::-1]

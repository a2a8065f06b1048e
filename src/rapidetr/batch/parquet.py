"""Parquet files as sources: which column holds the pictures, and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rapidetr.batch.store import open_place
from rapidetr.core.errors import BackendMissing, ImageError
from rapidetr.pixels.read import one_line

COLUMNS = ("image", "bytes", "path", "file_name", "url")  # looked for in this order
ROWS_AT_ONCE = 32


def is_table(file: str) -> bool:
    return file.lower().endswith(".parquet")


def pyarrow() -> Any:
    """The package with its Parquet part."""
    try:
        import pyarrow.parquet
    except ImportError as problem:
        raise BackendMissing(f"Parquet needs pyarrow ({problem}); install it with: pip install 'rapidetr[ray]'") from None
    return pyarrow


@contextmanager
def open_table(file: str) -> Iterator[Any]:
    """A pyarrow ParquetFile that reads as it goes, not a whole column ahead."""
    parquet = pyarrow().parquet
    fs, path = open_place(file)
    try:
        with fs.open(path, "rb") as opened, parquet.ParquetFile(opened, pre_buffer=False, buffer_size=2**20) as table:
            yield table
    except (OSError, pyarrow().ArrowException) as problem:
        raise ImageError(f"{file}: cannot be read as Parquet ({one_line(problem)}); write it again") from None


def table_parts(file: str, column: str | None) -> tuple[str, bool]:
    """(column with the pictures, whether it holds their bytes rather than paths); ImageError where there is none such.

    Bytes are a binary column, or a struct with `bytes` as Hugging Face writes them.
    """
    with open_table(file) as table:
        schema = table.schema_arrow
    names = [name for name in ([column] if column else COLUMNS) if name in schema.names]
    if not names:
        wanted = column or " or ".join(COLUMNS)
        raise ImageError(f"{file}: has columns {', '.join(schema.names)}; expected {wanted}, or name another with --column")
    kind = schema.field(names[0]).type
    types = pyarrow().types
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return names[0], True
    if types.is_string(kind) or types.is_large_string(kind):
        return names[0], False
    raise ImageError(f"{file}: column {names[0]} is {kind}; expected bytes of pictures (binary) or paths (string)")


def row_cuts(file: str, most: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of pieces of at most `most` rows; none spans two row groups, which are what Parquet reads at once."""
    with open_table(file) as table:
        groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    first = 0
    for rows in groups:
        for start in range(0, rows, most):
            yield first + start, min(most, rows - start)
        first += rows


def read_paths(file: str, column: str) -> Iterator[str]:
    """The paths of a column; a hole is an empty path."""
    with open_table(file) as table:
        for batch in table.iter_batches(batch_size=4096, columns=[column]):
            yield from (path or "" for path in batch.column(0).to_pylist())


def read_rows(file: str, column: str, start: int, count: int) -> Iterator[bytes | None]:
    """The bytes of `count` rows of one row group, from row `start` of the file."""
    with open_table(file) as table:
        group, first = 0, 0
        while first + table.metadata.row_group(group).num_rows <= start:
            first += table.metadata.row_group(group).num_rows
            group += 1
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[group], columns=[column]):
            inside = batch.slice(max(start - first, 0), max(start + count - max(first, start), 0))
            yield from (value.get("bytes") if isinstance(value, dict) else value for value in inside.column(0).to_pylist())
            first += batch.num_rows
            if first >= start + count:
                return

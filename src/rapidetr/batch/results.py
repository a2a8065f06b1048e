"""What a shard gives: a row for each picture, as JSON lines or Parquet; both hold the same."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from rapidetr.batch.parquet import pyarrow
from rapidetr.core.detections import Detections

FORMATS = ("jsonl", "parquet")

Row = dict[str, Any]


def row_of(found: Detections, image_id: int, name: str) -> Row:
    """A picture as in the `images` of a COCO file, its results (`Detections.to_coco`) under `annotations`; sizes in pixels."""
    height, width = found.image_hw
    return {"id": image_id, "file_name": name, "width": width, "height": height, "annotations": found.to_coco(image_id)}


def encode_rows(rows: Sequence[Row], form: str, *, masks: bool) -> bytes:
    """The bytes of a result file; `masks` says whether the model makes them, so that all shards have one schema."""
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    arrow, file = pyarrow(), io.BytesIO()
    named = [{**row, "file_name": row["file_name"].encode("utf-8", "backslashreplace").decode()} for row in rows]  # Parquet is UTF-8
    arrow.parquet.write_table(arrow.Table.from_pylist(named, schema=_schema(arrow, masks)), file)
    return file.getvalue()


def decode_rows(data: bytes, form: str) -> list[Row]:
    """Inverse of `encode_rows`."""
    if form == "jsonl":
        return [json.loads(line) for line in data.splitlines()]
    rows: list[Row] = pyarrow().parquet.read_table(io.BytesIO(data)).to_pylist()
    return rows


def _schema(arrow: Any, masks: bool) -> Any:
    whole, text = arrow.int64(), arrow.string()
    result = {"image_id": whole, "category_id": whole, "bbox": arrow.list_(arrow.float64()), "score": arrow.float64()}
    if masks:
        result["segmentation"] = arrow.struct({"size": arrow.list_(whole), "counts": text})
    results = arrow.list_(arrow.struct(result))
    return arrow.schema({"id": whole, "file_name": text, "width": whole, "height": whole, "annotations": results})

"""What travels in requests and answers, as OpenAPI tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rapidetr.pixels.decode import Encoded
from rapidetr.serving.limits import Refusal

MASKS = ("none", "rle", "polygons")


class Options(BaseModel):
    """What to keep; the same in the query, in a form and in JSON."""

    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="scores lie above it")
    classes: list[Annotated[int, Field(strict=True)] | Annotated[str, Field(max_length=200)]] | None = Field(
        None, min_length=1, max_length=1000, description="names or indices to keep; in a form or query once for each"
    )
    max_detections: int | None = Field(None, ge=1, le=10_000, description="at most so many a picture, best first")
    masks: Literal["none", "rle", "polygons"] = Field("rle", description="form of masks, where the model makes any")
    deadline_ms: int | None = Field(None, ge=1, le=3_600_000, description="drop the request when it was not begun by then")


class JsonRequest(Options):
    """Pictures as base64, or as addresses where the server takes them."""

    images: list[str] = Field([], description="base64 of JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF files")
    urls: list[str] = Field([], description="http(s) addresses; refused unless the server was started with --fetch-urls")


@dataclass(frozen=True)
class Asked:
    """A request that was read; `urls` are still to be fetched."""

    pictures: list[Encoded]
    urls: list[str]
    options: Options


class Found(BaseModel):
    box_xyxy_px: tuple[float, float, float, float] = Field(description="left, top, right, bottom in pixels of the picture as it is seen")
    score: float
    class_id: int
    class_name: str
    dataset_id: int
    head_row: int
    mask: dict[str, Any] | list[list[int]] | None = Field(None, description="COCO run lengths, or outlines x, y, x, y, ...")
    area_px: int | None = None


class ImageAnswer(BaseModel):
    source: str | None = Field(description="file name or address")
    size_hw: tuple[int, int]
    resize_filter: str
    unnamed_dropped: int
    error: None = None
    times_ms: dict[str, float] = Field(description="by stage; run and transfer are those of the batch it was in")
    detections: list[Found]


class Answer(BaseModel):
    model: str = Field(description="id; GET /v1/model tells more")
    images: list[ImageAnswer]
    times_ms: dict[str, float] = Field(description="read: of the body; total: from the headers to the answer")


class Problem(BaseModel):
    error: str = Field(description="kind, for programs")
    message: str = Field(description="what was expected, what came, what to do")


class Label(BaseModel):
    class_id: int
    name: str
    dataset_id: int


class Card(BaseModel):
    id: str
    name: str
    task: str
    size_hw: tuple[int, int]
    queries: int
    decoder_layers: int
    engine: str
    precision: str
    device: str
    license: str
    artifact: str | None
    verdict: dict[str, Any] | None
    labels: list[Label]
    notes: list[str]
    loaded: str


def told(problem: ValidationError) -> Refusal:
    """The first thing that is wrong, in one line."""
    first = problem.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "body"
    more = f" (and {problem.error_count() - 1} more)" if problem.error_count() > 1 else ""
    return Refusal(422, "InvalidRequest", f"{where[:100]}: {first['msg']}, got {first['input']!r:.80}{more}")


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNsaGhgwAaYsIoOWgkAsqABj33gcoAAAAAASUVORK5CYII="

_OPTIONS = Options.model_json_schema()["properties"]
PARAMETERS = [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in _OPTIONS.items()]
_FILES = {"images": {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "files; any field name will do"}}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {**_FILES, **_OPTIONS}, "required": ["images"]}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": JsonRequest.model_json_schema(),
            "examples": {
                "one": {"summary": "one picture", "value": {"images": [PNG], "threshold": 0.4}},
                "some": {
                    "summary": "several, outlines as polygons",
                    "value": {"images": [PNG, PNG], "masks": "polygons", "max_detections": 20},
                },
            },
        },
    },
}
ANSWER = {
    "model": "pico-288x288-torch-float32",
    "images": [
        {
            "source": "street.jpg",
            "size_hw": [480, 640],
            "resize_filter": "bilinear-antialias",
            "unnamed_dropped": 0,
            "error": None,
            "times_ms": {"decode": 3.1, "prepare": 2.2, "wait": 0.1, "transfer": 0.01, "run": 31.5, "select": 0.2},
            "detections": [
                {
                    "box_xyxy_px": [12.5, 40.25, 200.0, 310.75],
                    "score": 0.913,
                    "class_id": 0,
                    "class_name": "person",
                    "dataset_id": 1,
                    "head_row": 1,
                    "mask": None,
                }
            ],
        }
    ],
    "times_ms": {"read": 0.4, "total": 38.2},
}
PROBLEMS = {
    400: ("BadRequest", "There was an error parsing the body"),
    401: ("Unauthorized", "expected an API key in X-API-Key or in Authorization: Bearer"),
    408: ("TooSlow", "the body did not arrive within 10 s; send a smaller picture, or raise --body-timeout"),
    413: ("TooLarge", "the body has more than 33554432 bytes; send fewer or smaller pictures"),
    415: (
        "UnsupportedMediaType",
        "content type is 'text/plain'; expected multipart/form-data, application/json, application/octet-stream or image/*",
    ),
    422: ("ImageError", "street.jpg is damaged or cut off (image file is truncated); copy or export it again"),
    503: ("Overloaded", "64 of 64 places are taken, 1 more were asked for; try again in 2 s"),
    504: ("DeadlinePassed", "its deadline passed after 10.002 s in the queue"),
}


def problem_response(status: int) -> dict[str, Any]:
    kind, message = PROBLEMS[status]
    found: dict[str, Any] = {"model": Problem, "content": {"application/json": {"example": {"error": kind, "message": message}}}}
    if status == 503:
        found["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


PREDICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Answer, "content": {"application/json": {"example": ANSWER}}},
    **{status: problem_response(status) for status in PROBLEMS},
}

"""The body of a prediction -> pictures and options, whichever of the three forms it has."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from rapidetr.pixels.decode import Encoded
from rapidetr.serving.form import read_parts
from rapidetr.serving.limits import Refusal, ServeLimits
from rapidetr.serving.schema import Asked, JsonRequest, Options, told

FORMS = "multipart/form-data, application/json, application/octet-stream or image/*"
MOST_FIELDS = 1100  # 1000 classes and the rest


async def read_request(request: Request, limits: ServeLimits) -> Asked:
    """What a request asks for; Refusal for what is not understood. The guard has bounded the body already."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = gather(list(request.query_params.multi_items()))
    body = await request.body()
    if kind == "multipart/form-data":
        asked = read_form(body, request.headers["content-type"], query, limits)
    elif kind == "application/json":
        asked = read_json(body, query, limits)
    elif kind == "application/octet-stream" or kind.startswith("image/"):
        asked = Asked([Encoded(body)], [], checked(query))
    else:
        raise Refusal(415, "UnsupportedMediaType", f"content type is {kind[:80]!r}; expected {FORMS}")
    count = len(asked.pictures) + len(asked.urls)
    if not count:
        raise Refusal(422, "InvalidRequest", "no picture came; expected at least one")
    check_count(count, limits)
    return asked


def check_count(count: int, limits: ServeLimits) -> None:
    if count > limits.max_images:
        raise Refusal(413, "TooLarge", f"{count} pictures came; expected at most {limits.max_images}, send several requests")


def read_form(body: bytes, content_type: str, query: dict[str, Any], limits: ServeLimits) -> Asked:
    parts = read_parts(body, content_type, limits.max_images + MOST_FIELDS)
    pictures = [Encoded(bytes(p.data), (p.filename or p.name)[:200]) for p in parts if p.filename is not None]
    fields = [(p.name, p.data.decode("utf-8", "replace")) for p in parts if p.filename is None]
    return Asked(pictures, [], checked(query | gather(fields)))


def read_json(body: bytes, query: dict[str, Any], limits: ServeLimits) -> Asked:
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise Refusal(422, "InvalidRequest", f"body is not JSON ({problem!s:.100})") from None
    if not isinstance(record, dict):
        raise Refusal(422, "InvalidRequest", f"body is a JSON {type(record).__name__}; expected an object with images")
    check_count(
        sum(len(part) for name in ("images", "urls") if isinstance(part := record.get(name), list)), limits
    )  # before a million are looked at
    try:
        wanted = JsonRequest.model_validate(query | record)
    except ValidationError as problem:
        raise told(problem) from None
    pictures = [Encoded(decode_base64(text, i), f"images[{i}]") for i, text in enumerate(wanted.images)]
    return Asked(pictures, wanted.urls, wanted)


def decode_base64(text: str, place: int) -> bytes:
    """Bytes of base64 (line breaks allowed); Refusal that says which of the pictures is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as problem:
        message = f"images[{place}] is not base64 ({problem}); expected the bytes of a picture file, without a data: prefix"
        raise Refusal(422, "InvalidRequest", message) from None


def gather(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Texts by name; `classes` may come several times and is a list, a name that comes twice otherwise counts once."""
    found: dict[str, Any] = {name: value for name, value in pairs if name != "classes"}
    classes = [value for name, value in pairs if name == "classes"]
    return found | ({"classes": classes} if classes else {})


def checked(fields: dict[str, Any]) -> Options:
    try:
        return Options.model_validate(fields)
    except ValidationError as problem:
        raise told(problem) from None

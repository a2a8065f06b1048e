"""multipart/form-data that is in memory already, as parts; nothing goes to a disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from rapidetr.serving.limits import Refusal


@dataclass
class Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    name: str = ""
    filename: str | None = None  # None: a field, not a file


class Parts:
    """What a parser calls; `found` are the parts, `complete` is True after the closing boundary."""

    def __init__(self, most: int) -> None:
        self.most, self.found, self.complete = most, list[Part](), False
        self.header, self.value = bytearray(), bytearray()

    def on_part_begin(self) -> None:
        if len(self.found) >= self.most:
            raise Refusal(413, "TooLarge", f"the form has more than {self.most} parts; send several requests")
        self.found.append(Part())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.found[-1].data += data[start:end]

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        self.found[-1].headers[bytes(self.header).lower()] = bytes(self.value)
        self.header, self.value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        part = self.found[-1]
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode("utf-8", "replace")

    def on_end(self) -> None:
        self.complete = True


def read_parts(body: bytes, content_type: str, most: int) -> list[Part]:
    """The parts of a form, at most `most`; Refusal for what is no whole form."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Refusal(400, "BadRequest", "the form has no boundary in its content type; let the client set it")
    parts = Parts(most)
    callbacks = {name: getattr(parts, name) for name in vars(Parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
    except FormParserError as problem:
        raise Refusal(400, "BadRequest", f"the form cannot be read ({' '.join(str(problem).split()):.100})") from None
    if not parts.complete:
        raise Refusal(400, "BadRequest", "the form is cut off: its closing boundary is missing; send it again")
    return parts.found

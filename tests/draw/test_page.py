"""A page is one file that needs nothing else, shows what it was given and nothing of it as markup."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from html.parser import HTMLParser

from rapidetr.draw.page import Section, render_page

PNG, JPEG, SVG = b"\x89PNG\r\n\x1a\n...", b"\xff\xd8\xff...", "<svg><text>a</text></svg>"
EVIL = "</script><script>alert(1)</script><b a=\"'&"


class Reader(HTMLParser):
    """Texts by element, addresses, and the embedded record."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.addresses: list[str] = []
        self.records: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            assert dict(attrs) == {"type": "application/json", "id": "record"}

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"] and data.strip():
            self.records.append(data)
        elif data.strip():
            self.texts.append((self.tags[-1], data.strip()))


def test_everything_is_shown_and_nothing_becomes_markup() -> None:
    sections = [Section("One " + EVIL, "first " + EVIL + "\n\nsecond", (["name", "AP"], [[EVIL, "0.500"], ["b", "-"]]))]
    page = Reader(render_page("Title " + EVIL, sections))
    expected = [
        ("title", "Title " + EVIL), ("h1", "Title " + EVIL), ("h2", "One " + EVIL), ("p", "first " + EVIL), ("p", "second"),
        ("th", "name"), ("th", "AP"), ("td", EVIL), ("td", "0.500"), ("td", "b"), ("td", "-"),
    ]  # fmt: skip
    assert [found for found in page.texts if found[0] != "style"] == expected
    assert "script" not in page.tags
    assert "b" not in page.tags


def test_the_record_comes_back_whole() -> None:
    record = {"name": EVIL, "values": [0.1, None, 12], "nested": {"<": "é"}}
    page = Reader(render_page("T", [], record=record))
    assert [json.loads(text) for text in page.records] == [record]


def test_pictures_are_part_of_the_page() -> None:
    text = render_page("T", [Section("Pictures", figures=(SVG,), pictures=(("a", PNG), ("b " + EVIL, JPEG)))])
    page = Reader(text)
    kinds, contents = zip(*(address.split(";base64,") for address in page.addresses), strict=True)
    assert kinds == ("data:image/svg+xml", "data:image/png", "data:image/jpeg")
    assert [b64decode(content) for content in contents] == [SVG.encode(), PNG, JPEG]
    assert [shown for tag, shown in page.texts if tag == "figcaption"] == ["a", "b " + EVIL]


def test_nothing_is_fetched_and_phones_and_dark_rooms_are_served() -> None:
    page = render_page("T", [Section("A", figures=(SVG,))], record={})
    assert re.findall(r"https?:|@import|url\(", page) == []
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page

"""One HTML file that needs nothing but itself: no network, no scripts; light or dark as its reader likes, also on a phone."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True)
class Section:
    """A heading and, below it, what there is: text (blank lines part paragraphs), a table as (heads, rows), charts as SVG
    documents, pictures as (caption, bytes of a PNG or JPEG file)."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[str] = ()
    pictures: Sequence[tuple[str, bytes]] = ()

    @property
    def paragraphs(self) -> list[str]:
        return [part for part in self.text.split("\n\n") if part.strip()]


def render_page(title: str, sections: Sequence[Section], *, record: Any = None) -> str:
    """The page; `record`, JSON types, is embedded whole, so that programs read the very numbers that people see.

    They find it in the element with id `record`.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    # "<" only occurs inside JSON strings; escaped, none of them can end the script element
    held = None if record is None else Markup(json.dumps(record).replace("<", "\\u003c"))
    return environment.from_string(PAGE).render(title=title, sections=sections, record=held)


def data_uri(content: bytes | str) -> str:
    """An address that is the picture itself; text is an SVG document, kept apart as an image so that ids cannot meet."""
    raw = content.encode("utf-8") if isinstance(content, str) else content
    kind = "svg+xml" if isinstance(content, str) else "png" if raw.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{b64encode(raw).decode('ascii')}"


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #ddd; --soft: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #24272b; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { background: var(--soft); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; }
figcaption { font-size: .85rem; opacity: .8; }
img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for paragraph in section.paragraphs %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.table %}
<div class="wide"><table>
<thead><tr>{% for head in section.table[0] %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in section.table[1] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
{% if section.figures or section.pictures %}
<div class="grid">
{% for figure in section.figures %}
<figure><img alt="{{ section.title }}" src="{{ figure | data_uri }}"></figure>
{% endfor %}
{% for caption, picture in section.pictures %}
<figure><img alt="{{ caption }}" src="{{ picture | data_uri }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
</section>
{% endfor %}
{% if record is not none %}
<script type="application/json" id="record">{{ record }}</script>
{% endif %}
</body>
</html>
"""

"""The site builds without a warning, needs nothing from elsewhere, and leads everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytestmark = pytest.mark.slow
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}  # what a browser fetches by itself


class Pages(HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded, self.links = list[str](), list[str]()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if address := found.get(LOADED.get(tag, "")):
            self.loaded.append(address)
        if tag == "a" and (address := found.get("href")):
            self.links.append(address)


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_the_documentation_is_in_the_site(root: Path, site: Path) -> None:
    wanted = {page.with_suffix(".html").name for page in (root / "docs").glob("*.md")} | {"CONTRIBUTING.html", "benchmarks/RESULTS.html"}
    assert {name for name in wanted if not (site / name).is_file()} == set()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    away = [(page.name, address) for page in pages for address in Pages(page).loaded if address.startswith(("http:", "https:", "//"))]
    assert away == []


def test_links_inside_the_site_lead_to_files(site: Path) -> None:
    followed = 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links begin at the root of a server
            continue
        for link in Pages(page).links:
            path = unquote(urldefrag(link).url)
            if path and not path.startswith(("http:", "https:", "mailto:")):
                target = page.parent / path
                assert target.is_file() or (target / "index.html").is_file(), f"{page.relative_to(site)} leads to {link}"
                followed += path.startswith("..") or "/" in path
    assert followed > 0  # files that lie outside docs/ were among them


def test_search_knows_the_pages(site: Path) -> None:
    assert "interleaved" in (site / "search" / "search_index.json").read_text("utf-8")

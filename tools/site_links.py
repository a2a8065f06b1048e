"""What mkdocs asks while it builds the site: files outside docs/ that pages link to come along, and their links are turned.

Pages link as the repository browser needs it: other.md, or ../benchmarks/RESULTS.md. A file of the repository has the same path in
the site, but those of docs/ lie at its top.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT, DOCS = Path(__file__).resolve().parents[1], "docs/"
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
CONTRIBUTING = "CONTRIBUTING.md"  # a page of its own, whether or not another one links to it


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of docs/, and whatever they and those files link to."""
    seen = {DOCS + file.src_uri for file in files}
    waiting = [*(path for path in seen if path.endswith(".md")), CONTRIBUTING]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
            seen.add(path)
        if path.endswith(".md"):
            waiting += [target for target in targets(path) if target not in seen]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text with links from place to place in the site."""
    here = in_repository(page.file)

    def turn(match: re.Match[str]) -> str:
        target = resolve(match[2], here)
        return match[0] if target is None else f"{match[1]}{posixpath.relpath(in_site(target), posixpath.dirname(in_site(here)))}{match[3]}"

    return LINK.sub(turn, markdown)


def targets(path: str) -> Iterator[str]:
    """Files of the repository that a page links to."""
    for match in LINK.finditer((ROOT / path).read_text("utf-8")):
        if target := resolve(match[2], path):
            yield target


def resolve(link: str, page: str) -> str | None:
    """The path in the repository that `link` on `page` leads to; None for addresses, and for what is no file (mkdocs complains)."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return target if not target.startswith("../") and ":" not in link and (ROOT / target).is_file() else None


def in_site(path: str) -> str:
    return path.removeprefix(DOCS)


def in_repository(file: File) -> str:
    return file.src_uri if file.generated_by else DOCS + file.src_uri

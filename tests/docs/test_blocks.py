"""Every code block of the documentation that can run is run, page after page; the others say why not, and are at most a fifth."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from doc_blocks import PROSE, RUN, Block, Reader, blocks_of, is_run, logical_lines
from doc_world import furnish, shorten, write_weights

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language not in PROSE]
MOST_LEFT_OUT = 1 / 5
EXTERNAL = ("scale.md",)  # needs Ray


def run_pages() -> list[object]:
    """Pages with something to run; those that need what `make test` has not are run by `make test-external`."""
    names = sorted({block.page for block in BLOCKS if block.mark != "not run"})
    return [pytest.param(name, marks=pytest.mark.external if name in EXTERNAL else pytest.mark.slow, id=name) for name in names]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The furnished folder that every page gets a copy of, and beside it the home with the stand-in weights; of this module alone, so that
    no other test sees what `shorten` changes."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        write_weights(folder / "home")
        shorten(patch, folder / "home")
        (folder / "world").mkdir()
        patch.chdir(folder / "world")
        yield furnish(folder / "world")
    shutil.rmtree(folder)


@pytest.fixture
def reader(world: Path, tmp_path: Path) -> Iterator[Reader]:
    threads, here = torch.get_num_threads(), Path.cwd()
    folder = Path(shutil.copytree(world, tmp_path / "page"))
    os.chdir(folder)
    page = Reader(folder)
    yield page
    page.stop()
    os.chdir(here)
    torch.set_num_threads(threads)
    shutil.rmtree(folder)


@pytest.mark.parametrize("page", run_pages())
def test_blocks_of_a_page_run_in_order(page: str, reader: Reader) -> None:
    for block in BLOCKS:
        if block.page == page and block.mark != "not run":
            reader.run(block)


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    left_out = [block for block in BLOCKS if block.mark == "not run"]
    for block in left_out:
        print(f"{block.place}: {block.reason}")
    print(f"{len(left_out)} of {len(BLOCKS)} blocks are not run")
    assert len(left_out) <= MOST_LEFT_OUT * len(BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_known_language(page: Path) -> None:
    blocks = blocks_of(page)
    odd = [f"{b.place}: {b.language!r}" for b in blocks if b.language not in (*RUN, *PROSE) and b.mark != "not run"]
    assert not odd, f"{odd}; expected one of {', '.join((*RUN, *PROSE))}, or a mark that says why it is not run"
    empty = [b.place for b in blocks if b.language == "sh" and b.mark != "not run" and not any(map(is_run, logical_lines(b.code)))]
    assert not empty, f"{empty}: nothing there is run (installing is not); say so with <!-- not run: WHY -->"
    fences = sum(line.lstrip().startswith("```") for line in page.read_text("utf-8").splitlines())
    assert fences == 2 * len(blocks), f"{page.name}: {fences} fences make {len(blocks)} blocks"


def test_marks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before, after = "<!-- not run: needs a GPU -->", "<!-- may end with 1: noise -->"
    page.write_text(f"a\n\n{before}\n```sh\nrapidetr x\n```\n\n```python\n1\n```\n{after}\n```text\nx\n```\n")
    assert blocks_of(page) == [
        Block("page.md", 5, "sh", "rapidetr x\n", "not run", "needs a GPU"),
        Block("page.md", 9, "python", "1\n", "may end with 1", "noise"),
        Block("page.md", 13, "text", "x\n", "", ""),
    ]

"""The table of official names says something of every name that rapidetr.compat has."""

from __future__ import annotations

import re
from pathlib import Path

import rapidetr.compat
from rapidetr.compat.keywords import TRAINING, USED


def test_every_name_of_compat_is_in_the_table(root: Path) -> None:
    page = re.sub(r"^```.*?^```$", "", (root / "docs" / "migrate-from-rfdetr.md").read_text("utf-8"), flags=re.M | re.S)
    told = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page))))
    methods = {name for name in dir(rapidetr.compat.RFDETR) if not name.startswith("_")}
    assert {*rapidetr.compat.__all__, *methods, *USED, *TRAINING} - told == set()

"""Fixtures for every test: where real photos may lie, and a quiet, deterministic torch."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


LONGEST = ("test_readme.py", "test_blocks.py")  # minutes each; begun last, they would leave the other processes idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)  # stable: all else stays in order


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos, beside the checkout; tests that need it are skipped, counted and named without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("real photos are not here (../shared/data is missing)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference values that are part of the checkout."""
    return ROOT / "tests" / "golden"

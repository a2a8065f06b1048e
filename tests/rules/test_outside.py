"""What scripts beside the package take from it is there: most of them run in no fast test."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path for folder in ("examples", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts
)


def taken(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every `from rapidetr... import name`, inside functions as well."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom))
    return [(node.module, alias.name) for node in nodes if node.module and node.module.startswith("rapidetr") for alias in node.names]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_takes_from_the_package_is_there(path: Path) -> None:
    missing = [f"{module}.{name}" for module, name in taken(path) if not offers(module, name)]
    assert not missing


def offers(module: str, name: str) -> bool:
    """Whether `from module import name` would work."""
    found = import_module(module)
    if hasattr(found, name):
        return True
    try:
        import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


def test_a_name_that_left_is_noticed() -> None:
    assert offers("rapidetr.runtime.places", "find_artifact")
    assert offers("rapidetr.runtime", "places")
    assert not offers("rapidetr.runtime.artifact", "find_artifact")

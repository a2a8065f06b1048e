"""Who may import whom, what is public, and what importing may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rapidetr

PACKAGE = Path(rapidetr.__file__).parent
DOORS: dict[str, set[str]] = {
    "core": set(),
    "pixels": {"core"},
    "model": {"core"},
    "draw": {"core", "pixels"},
    "data": {"core", "pixels"},
    "checkpoints": {"core", "model"},
    "criterion": {"core", "model"},
    "runtime": {"core", "pixels", "model", "checkpoints"},
    "evaluation": {"core", "data", "runtime"},
    "training": {"core", "model", "criterion", "data", "checkpoints", "runtime", "evaluation", "draw"},
    "demo": {"core", "data"},
    "bench": {"core", "data", "runtime", "evaluation", "draw"},
    "choice": {"core", "data", "runtime", "evaluation", "bench"},
    "deployment": {"core", "pixels", "model", "checkpoints", "data", "runtime", "evaluation", "bench", "demo"},
    "serving": {"core", "pixels", "runtime"},
    "batch": {"core", "pixels", "runtime"},
    "video": {"core", "pixels", "runtime", "draw"},
}
ALL = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("_")}
FREE = {"compat", "cli"}  # may import everything; nothing imports them


def imports(path: Path) -> list[tuple[str, bool]]:
    """(room, whether at module level) of every import of this package."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        rooms = [n.split(".")[1] for n in names if n.startswith("rapidetr.")]
        found += [(room, id(node) in top) for room in rooms if id(node) not in typing_only]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_through_their_doors(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    if room in FREE or room.endswith(".py"):
        return
    assert room in DOORS, f"{room} is a new room: give it a door in this test and a caption in the README"
    allowed = DOORS[room] | {room}
    lazy_forwards = {("core", "draw")}  # one-line methods of Detections
    wrong = [other for other, top in imports(path) if other not in allowed and (top or (room, other) not in lazy_forwards)]
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}; {room} may import {sorted(allowed)}"


def test_every_room_has_a_door() -> None:
    assert {r for r in ALL if list((PACKAGE / r).glob("*.py"))} == set(DOORS) | FREE


@pytest.mark.parametrize("room", ["core", "pixels"])
def test_numpy_rooms_never_import_torch(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        heavy = [line for line in path.read_text().splitlines() if line.strip().startswith(("import torch", "from torch"))]
        assert not heavy, f"{path.name}: {heavy}"


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_is_light() -> None:
    assert fresh("import sys, rapidetr; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))") == "[]"


def test_the_room_of_official_names_needs_no_import_of_its_own() -> None:
    assert fresh("import rapidetr; print(rapidetr.compat.RFDETRNano.size)") == "rfdetr-nano"


def test_import_changes_no_global_state() -> None:
    code = (
        "import torch, numpy, PIL.Image;"
        "state = lambda: (torch.get_float32_matmul_precision(), PIL.Image.MAX_IMAGE_PIXELS, torch.get_num_threads());"
        "before = state();"
        "import rapidetr.runtime.load, rapidetr.compat, rapidetr.cli.main;"
        "print(before == state(), torch.cuda.is_initialized())"
    )
    assert fresh(code) == "True False"


def test_public_names() -> None:
    assert rapidetr.__all__ == sorted(rapidetr.__all__)
    for name in rapidetr.__all__:
        assert getattr(rapidetr, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match=r"module 'rapidetr' has no attribute 'laod'; it has .*load"):
        rapidetr.laod  # noqa: B018

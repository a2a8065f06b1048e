"""`rapidetr history`, `promote` and `rollback`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import rapidetr
from rapidetr.deployment.registry import Registry
from rapidetr.runtime.artifact import Manifest, write_artifact


@pytest.fixture
def ids(run, model: Path, tmp_path: Path) -> list[str]:
    """A baseline and a bfloat16 artifact that was accepted, in `registry`."""
    registry, found = Registry("registry", user=lambda: "ann"), []
    for precision in ("float32", "bfloat16"):
        manifest = Manifest.of(rapidetr.load(model, device="cpu", dtype=precision), source=model, command="", parameters={})
        made = write_artifact(tmp_path / precision, {"best.safetensors": model}, manifest)
        found.append(registry.add(made.path, files={"verdict.json": b'{"accepted": true}'}, why=f"it is {precision}"))
    return found


@pytest.fixture
def folder(run, tmp_path: Path) -> Path:
    """The empty folder that `run` works in."""
    return tmp_path / "registry"


def test_a_drill(run, folder, ids):
    plain, quick = ids
    assert run("promote", "registry/", quick, "--why", "twice as fast", "--who", "bob") == (
        0,
        f"registry/: {quick} is current, before it was {plain}\n",
        "",
    )
    assert rapidetr.load("registry/current").engine.precision == "bfloat16"
    status, out, _ = run("rollback", "registry/", "--why", "it\nshakes", "--who", "cy")
    assert (status, out) == (0, f"registry/: {plain} is current again, after {quick}\n")
    assert rapidetr.load(folder / "current").engine.precision == "float32"
    status, out, err = run("history", "registry/")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split() == ["number", "when", "who", "action", "from", "to", "why"]
    told = [(row.split()[0], *row.split()[2:6], " ".join(row.split()[6:])) for row in lines[1:5]]
    assert told == [
        ("1", "ann", "baseline", "-", plain, "it is float32"),
        ("2", "ann", "add", "-", quick, "it is bfloat16"),
        ("3", "bob", "promote", plain, quick, "twice as fast"),
        ("4", "cy", "rollback", quick, plain, "it shakes"),
    ]
    assert lines[5:] == [f"current: {plain}", f"baseline: {plain}"]


def test_json_of_all_three(run, folder, ids):
    status, out, err = run("promote", folder, ids[1], "--why", "näher dran", "--json", "--quiet")
    entry = json.loads(out)
    assert (status, err) == (0, "")
    assert (entry["action"], entry["before"], entry["after"], entry["why"]) == ("promote", *ids, "näher dran")
    assert entry["who"]
    back = json.loads(run("rollback", folder, "--json")[1])
    assert (back["number"], back["after"]) == (4, ids[0])
    document = json.loads(run("history", folder, "--json", "--quiet")[1])
    assert (document["current"], document["baseline"], document["artifacts"]) == (ids[0], ids[0], ids)
    assert document["history"][2:] == [entry, back]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("history", "nix"), "nix/current: no such file; nothing was added to this registry yet"),
        (("rollback", "nix"), "nix: is no registry; expected a folder to which artifacts were added"),
        (("rollback", "registry"), "registry: nothing was current before "),
        (("promote", "registry", "nix"), "registry: has no artifact 'nix'; there are: tiny-det-64x64-torch-float32-"),
    ],
)
def test_wrong_use_ends_with_2(run, folder, ids, words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"rapidetr: error: {message}")


def test_a_pointer_that_was_lost_is_no_empty_registry(run, folder, ids):
    (folder / "current").unlink()
    status, out, err = run("history", "registry")
    assert (status, out) == (2, "")
    assert err.startswith("rapidetr: error: registry/current: is gone, but history.jsonl has entries; restore it: artifact, line break, ")


@pytest.mark.slow
def test_the_drill_of_the_documentation(run, root: Path, tmp_path: Path):
    page = (root / "docs" / "deploy.md").read_text(encoding="utf-8")
    drill = re.split(r"^## ", page.partition("## A rollback drill\n")[2], flags=re.MULTILINE)[0]
    ((kind, program), (shell, commands)) = re.findall(r"^```(\w+)\n(.*?)^```", drill, re.MULTILINE | re.DOTALL)
    assert (kind, shell) == ("python", "sh")
    exec(program, {})
    first, second = Registry("drill").ids()
    currents = []
    for line in commands.replace("ID", second).strip().splitlines():
        assert run(*shlex.split(line, comments=True)[1:])[0] == 0, line
        currents.append(Registry("drill").current)
    assert currents == [first, second, second, first, first]
    assert rapidetr.load("drill/current").engine.queries == 50

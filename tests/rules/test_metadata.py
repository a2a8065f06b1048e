"""One version, one licence, one story: package, citation, changelog, README and lock file agree."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import rapidetr


def read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def test_version_has_one_source(root: Path) -> None:
    version = rapidetr.__version__
    assert metadata("rapidetr")["Version"] == version
    assert re.search(r"^version: (.+)$", read(root, "CITATION.cff"), re.M)[1] == version
    assert re.search(r"^## (\d+\.\d+\.\d+)", read(root, "CHANGELOG.md"), re.M)[1] == version
    assert "version" in tomllib.loads(read(root, "pyproject.toml"))["project"]["dynamic"]


def test_license_is_the_same_everywhere(root: Path) -> None:
    assert metadata("rapidetr")["License-Expression"] == "Apache-2.0"
    assert "license: Apache-2.0" in read(root, "CITATION.cff")
    assert read(root, "LICENSE").lstrip().startswith("Apache License")
    assert "Apache-2.0" in read(root, "README.md")


def test_readme_is_the_long_description(root: Path) -> None:
    assert tomllib.loads(read(root, "pyproject.toml"))["project"]["readme"] == "README.md"
    assert metadata("rapidetr")["Requires-Python"] == ">=3.11"


def test_core_install_stays_small(root: Path) -> None:
    needed = {re.split(r"[<>=\[]", d)[0] for d in tomllib.loads(read(root, "pyproject.toml"))["project"]["dependencies"]}
    assert needed == {"torch", "numpy", "Pillow", "safetensors", "tqdm", "filelock", "psutil", "Jinja2"}


def test_extras_are_named_in_the_readme(root: Path) -> None:
    for extra in tomllib.loads(read(root, "pyproject.toml"))["project"]["optional-dependencies"]:
        assert f"`{extra}`" in read(root, "README.md"), f"the README does not name the extra {extra}"


def test_lock_file_pins_and_hashes_everything_but_torch(root: Path) -> None:
    text = read(root, "requirements.lock").replace("\\\n", " ")
    entries = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)(.*)$", text, re.M)
    assert len(entries) > 20
    for name, _, rest in entries:
        assert ("--hash=sha256:" in rest) == (name != "torch"), name
    versions = {name: version for name, version, _ in entries}
    assert versions["torch"] == "2.13.0"
    direct = tomllib.loads(read(root, "pyproject.toml"))["project"]["dependencies"]
    assert {re.split(r"[<>=]", d)[0].lower() for d in direct} <= set(versions)


def test_every_room_is_captioned_in_the_readme(root: Path) -> None:
    rooms = {p.name for p in (root / "src" / "rapidetr").iterdir() if p.is_dir() and not p.name.startswith("_")}
    for room in rooms:
        assert re.search(rf"^\s+{room}/ ", read(root, "README.md"), re.M), f"{room}/ has no caption in the README's tree"

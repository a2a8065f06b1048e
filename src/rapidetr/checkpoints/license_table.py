"""Which licence each thing has: published weights and installed dependencies."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from rapidetr.checkpoints.weights import WEIGHTS


def table() -> list[dict[str, Any]]:
    """One record for every published weights file and every installed dependency, with its licence and source."""
    weights = [
        {"kind": "weights", "name": entry.filename, "license": entry.license, "source": entry.source or "only a file that you bring"}
        for entry in WEIGHTS.values()
    ]
    return weights + _dependencies()


def _dependencies() -> list[dict[str, Any]]:
    needed: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("rapidetr") or []
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        requirements = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", requirement)
        needed.setdefault(name, []).append(extra.group(1) if extra else "core")
    return [record for name, extras in sorted(needed.items()) if name != "rapidetr" for record in _installed(name, extras)]


def _installed(name: str, extras: list[str]) -> list[dict[str, Any]]:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    urls = sorted(about.get_all("Project-URL") or [], key=lambda url: not re.match("home|source|repo|code", url, re.IGNORECASE))
    source = next(iter([*(about.get_all("Home-page") or []), *urls]), name).split(", ")[-1]
    return [
        {
            "kind": "dependency",
            "name": name,
            "version": about["Version"],
            "license": license_of(about) or first_line(name),
            "for": extras,
            "source": source,
        }
    ]


def license_of(about: metadata.PackageMetadata) -> str:
    """Licence of a package: its expression, else its one-line field, else its classifiers, else the first line of that field."""
    field = (about.get_all("License") or [""])[0].strip().replace("UNKNOWN", "")
    expression = (about.get_all("License-Expression") or [""])[0]
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    one_line = field if "\n" not in field else ""
    return expression or one_line or ", ".join(classifiers) or field.split("\n")[0]


def first_line(name: str) -> str:
    """Title of the licence text that a package ships, for one whose metadata states nothing."""
    for file in metadata.files(name) or []:
        if re.match(r"licen[cs]e", file.name, re.IGNORECASE):
            lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
            return next((line for line in lines if line), "") or "unknown"
    return "unknown"

"""Who must accept what, and the list of licences."""

from __future__ import annotations

from email.message import Message
from importlib import metadata

import pytest

from rapidetr.checkpoints.license_table import license_of, table
from rapidetr.checkpoints.licenses import notice, require_license
from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.core.errors import LicenseRefused

REFUSAL = (
    "mine.pth is under PML-1.0, Roboflow's platform model licence: not open source, and only for weights that you bring under your own "
    "agreement with Roboflow; if you have one, pass accept_license='PML-1.0' or set RAPIDETR_ACCEPT_LICENSE=PML-1.0"
)


@pytest.fixture(autouse=True)
def _nothing_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPIDETR_ACCEPT_LICENSE", raising=False)


@pytest.mark.parametrize("accepted", [None, "", "yes", "Apache-2.0", "pml"])
def test_platform_license_must_be_accepted_by_name(accepted: str | None) -> None:
    with pytest.raises(LicenseRefused) as caught:
        require_license("mine.pth", "PML-1.0", accepted)
    assert str(caught.value) == REFUSAL


def test_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    require_license("nano", "Apache-2.0", None)
    require_license("mine.pth", "PML-1.0", "PML-1.0")
    monkeypatch.setenv("RAPIDETR_ACCEPT_LICENSE", "PML-1.0")
    require_license("mine.pth", "PML-1.0", None)


def test_notice() -> None:
    assert (
        notice(WEIGHTS["large-deprecated"]) == "rf-detr-large.pth: Apache-2.0, from https://storage.googleapis.com/rfdetr/rf-detr-large.pth"
    )
    assert notice(WEIGHTS["xlarge"]) == "rf-detr-xlarge.pth: PML-1.0, from a file of your own"


def test_table_lists_weights_and_what_is_installed() -> None:
    records = table()
    weights = [r for r in records if r["kind"] == "weights"]
    assert [r["name"] for r in weights] == [e.filename for e in WEIGHTS.values()]
    assert {r["source"] for r in weights if r["license"] == "PML-1.0"} == {"only a file that you bring"}
    needed = {r["name"]: r for r in records if r["kind"] == "dependency"}
    assert "rapidetr" not in needed
    assert {"torch", "numpy", "safetensors", "tqdm", "filelock"} <= {name for name, r in needed.items() if "core" in r["for"]}
    assert needed["numpy"]["version"] == metadata.version("numpy")
    assert "BSD-3-Clause" in needed["numpy"]["license"]
    assert all(r["license"] not in ("", "unknown") for r in needed.values())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("License-Expression", "MIT"), ("License", "other")], "MIT"),
        ([("License", "BSD"), ("Classifier", "License :: OSI Approved :: MIT License")], "BSD"),
        ([("License", "UNKNOWN"), ("Classifier", "License :: OSI Approved :: MIT License")], "MIT License"),
        ([("License", "Copyright\nall the text"), ("Classifier", "License :: OSI Approved :: BSD License")], "BSD License"),
        ([("License", "The licence\nall the text")], "The licence"),
        ([], ""),  # the first line of the licence text is shown instead
    ],
)
def test_license_of(fields: list[tuple[str, str]], expected: str) -> None:
    about = Message()
    for key, value in fields:
        about[key] = value
    assert license_of(about) == expected  # type: ignore[arg-type]

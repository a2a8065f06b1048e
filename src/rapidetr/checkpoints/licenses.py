"""The one licence that must be accepted before weights are used, and what a user is told of the others."""

from __future__ import annotations

import os

from rapidetr.checkpoints.weights import WeightsEntry
from rapidetr.core.errors import LicenseRefused

PML = "PML-1.0"
ACCEPT_VARIABLE = "RAPIDETR_ACCEPT_LICENSE"


def require_license(name: str, license: str, accepted: str | None) -> None:
    """Return if weights called `name` may be used; LicenseRefused unless PML-1.0 was accepted by argument or environment."""
    if license == PML and PML not in (accepted, os.environ.get(ACCEPT_VARIABLE)):
        raise LicenseRefused(
            f"{name} is under {PML}, Roboflow's platform model licence: not open source, and only for weights that you bring under "
            f"your own agreement with Roboflow; if you have one, pass accept_license={PML!r} or set {ACCEPT_VARIABLE}={PML}"
        )


def notice(entry: WeightsEntry) -> str:
    """One line for the user who loads these weights."""
    return f"{entry.filename}: {entry.license}, from {entry.source or 'a file of your own'}"

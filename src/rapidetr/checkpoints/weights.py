"""Weights with a name, published or in this package: where they are, what they must hash to, under which licence, what they reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path, PurePath
from typing import Any

from rapidetr.core.errors import CheckpointError, ConfigError, HashMismatch

PREFIX = "https://storage.googleapis.com/rfdetr/"


@dataclass(frozen=True)
class WeightsEntry:
    """One file. `url` and `md5` are None for weights that only a user may bring (PML-1.0) and for those in this package."""

    variant: str  # the row of core.config.VARIANTS
    filename: str
    url: str | None
    md5: str | None
    license: str
    ap: float | None  # COCO val2017 AP50:95 in percent as published, of masks if `mask`
    ap50: float | None
    mask: bool
    t4_ms: float | None  # published, TensorRT fp16, batch 1
    params_m: float | None  # millions, as published
    bundled: bool = False
    sha256: str | None = None  # of a bundled file

    @property
    def source(self) -> str | None:
        """Address, or "bundled"; None where only a user can bring the file."""
        return "bundled" if self.bundled else self.url


# fmt: off
_ROWS: tuple[tuple[Any, ...], ...] = (
    # name, file, where under PREFIX, md5, and as published: AP50, AP, T4 ms, million parameters
    ("nano", "rf-detr-nano.pth", "nano_coco/checkpoint_best_regular.pth", "fb6504cce7fbdc783f7a46991f07639f", 67.6, 48.4, 2.3, 30.5),
    ("small", "rf-detr-small.pth", "small_coco/checkpoint_best_regular.pth", "fb37061c1af7bace359c91b723a8d5c1", 72.1, 53.0, 3.5, 32.1),
    ("medium", "rf-detr-medium.pth", "medium_coco/checkpoint_best_regular.pth", "7223f764a87b863f02eb8d52bf0ce2ee", 73.6, 54.7, 4.4, 33.7),
    ("base", "rf-detr-base.pth", "rf-detr-base-coco.pth", "b4d3ce46099eaed50626ede388caf979"),
    ("base-2", "rf-detr-base-2.pth", "rf-detr-base-2.pth", "462f4d9df407ddc1812f42614040e913"),
    ("base-o365", "rf-detr-base-o365.pth", "top-secret-1234/lwdetr_dinov2_small_o365_checkpoint.pth", "d93f4921ccbb0f0a2e4364bed290892b"),
    ("large", "rf-detr-large-2026.pth", "rf-detr-large-2026.pth", "5cb72153541cbcb9aa6efa26222acc75", 75.1, 56.5, 6.8, 33.9),
    ("large-deprecated", "rf-detr-large.pth", "rf-detr-large.pth", "992c8e862aa733a7bb2777e45d49f1a0"),
    ("xlarge", "rf-detr-xlarge.pth", None, None, 77.4, 58.6, 11.5, 126.4),
    ("2xlarge", "rf-detr-xxlarge.pth", None, None, 78.5, 60.1, 17.2, 126.9),
    ("seg-preview", "rf-detr-seg-preview.pt", "rf-detr-seg-preview.pt", "e35820c28fb86080558123e47a5e49ca"),
    ("seg-nano", "rf-detr-seg-nano.pt", "rf-detr-seg-n-ft.pth", "9995497791d0ff1664a1d9ddee9cfd20", 63.0, 40.3, 3.4, 33.6),
    ("seg-small", "rf-detr-seg-small.pt", "rf-detr-seg-s-ft.pth", "0a2a3006381d0c42853907e700eadd08", 66.2, 43.1, 4.4, 33.7),
    ("seg-medium", "rf-detr-seg-medium.pt", "rf-detr-seg-m-ft.pth", "a49af1562c3719227ad43d0ca53b4c7a", 68.4, 45.3, 5.9, 35.7),
    ("seg-large", "rf-detr-seg-large.pt", "rf-detr-seg-l-ft.pth", "275f7b094909544ed2841c94a677d07e", 70.5, 47.1, 8.8, 36.2),
    ("seg-xlarge", "rf-detr-seg-xlarge.pt", "rf-detr-seg-xl-ft.pth", "3693b35d0eea86ebb3e0444f4a611fba", 72.2, 48.8, 13.5, 38.1),
    ("seg-2xlarge", "rf-detr-seg-xxlarge.pt", "rf-detr-seg-2xl-ft.pth", "040bc3412af840fa8a47e0ff69b552ba", 73.1, 49.9, 21.8, 38.6),
)
_BUNDLED: tuple[tuple[str, float, str | None], ...] = (  # trained from random weights on the rendered world of rapidetr.demo
    # name, million parameters, sha256 of weights/<name>.safetensors
    ("pico", 4.1, "5912dac44f14131119a811a57e552581bc169005a1646695f9e143b322825e1b"),
    ("seg-pico", 4.3, "2025d312ab36ba757e1e84888092bc703337f4babf40038307b5dac12bfb14b1"),
)
# fmt: on


def _entry(name: str, filename: str, tail: str | None, md5: str | None, *published: float) -> WeightsEntry:
    ap50, ap, t4_ms, params_m = published or (None,) * 4
    url, license = (PREFIX + tail, "Apache-2.0") if tail else (None, "PML-1.0")
    variant = "base" if name.startswith("base") else name
    return WeightsEntry(variant, filename, url, md5, license, ap, ap50, name.startswith("seg-"), t4_ms, params_m)


def _bundled(name: str, params_m: float, sha256: str | None) -> WeightsEntry:
    mask = name.startswith("seg-")
    return WeightsEntry(name, f"{name}.safetensors", None, None, "Apache-2.0", None, None, mask, None, params_m, True, sha256)


WEIGHTS: dict[str, WeightsEntry] = {row[0]: _entry(*row) for row in _ROWS} | {row[0]: _bundled(*row) for row in _BUNDLED}


def entry_for(variant: str) -> WeightsEntry:
    """The published file of a variant; ConfigError lists the names there are."""
    if variant not in WEIGHTS:
        raise ConfigError(f"there are no published weights called {variant!r}; available: {', '.join(WEIGHTS)}")
    return WEIGHTS[variant]


def entry_for_md5(md5: str) -> WeightsEntry | None:
    """The published file with this hash, whatever it is named."""
    return next((entry for entry in WEIGHTS.values() if entry.md5 == md5.lower()), None)


def entry_for_filename(name: str) -> WeightsEntry | None:
    """The published file of this name; folders before it do not count. A name proves nothing: see `entry_for_md5`."""
    return next((entry for entry in WEIGHTS.values() if entry.filename == PurePath(name).name), None)


@contextmanager
def bundled_file(entry: WeightsEntry) -> Iterator[Path]:
    """The file of a bundled entry, which lies in the installed package; CheckpointError without it, HashMismatch for another one."""
    place = files("rapidetr") / "weights" / entry.filename
    if not place.is_file():
        raise CheckpointError(
            f"{place}: expected the weights of {entry.variant}, which are part of a whole installation; install rapidetr again, or "
            "use weights='random'"
        )
    with as_file(place) as path:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if entry.sha256 not in (None, found):
            raise HashMismatch(f"{path}: has sha256 {found}, expected {entry.sha256}; install rapidetr again, or load it by its path")
        yield path

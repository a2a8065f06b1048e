"""Recorded benchmark reports as measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rapidetr.choice.records import Candidate, Measured
from rapidetr.core.errors import ConfigError
from rapidetr.core.reports import BenchReport, BenchRow

AP_OF = ("boxes", "masks")


def measured_in(report: BenchReport, source: str, *, ap_of: str = "boxes", allow_noise: bool = False) -> list[Measured]:
    """One measurement for each row that times one picture after another; ConfigError where there is none."""
    rows = [row for row in report.rows if (row.batch, row.streams, row.prefetch, row.load) == (1, 1, 0, "closed")]
    if not rows:
        raise ConfigError(f"{source}: no row has batch 1, one stream, no prefetch and closed load; a service level needs that one")
    ap = ((report.ap or {}).get(ap_of) or {}).get("AP")
    hashes = {"artifact_sha256": report.artifact_sha256, "dataset_sha256": report.dataset.get("sha256")}
    return [measured_row(row, ap=ap, problem=None if row.usable or allow_noise else noise_of(row), source=source, **hashes) for row in rows]


def measured_row(row: BenchRow, **more: Any) -> Measured:
    """Latency, memory and work of one row; memory is that of the device on CUDA, else of the process."""
    t = row.total
    if t.p95 is None or t.p95_interval is None:
        interval: tuple[float, float | None] = (t.p50_interval[0], None)
    else:
        interval = (min(t.p95_interval[0], t.p95), max(t.p95_interval[1], t.p95))
    return Measured(
        Candidate(row.artifact, row.size_hw, row.decoder_layers, row.queries, row.engine, row.precision),
        p50_ms=t.p50,
        p95_ms=t.p95,
        p95_interval_ms=interval,
        memory_mb=row.peak_process_mb if row.peak_device_mb is None else row.peak_device_mb,
        gmacs=row.gmacs,
        **more,
    )


def noise_of(row: BenchRow) -> str:
    return f"the run is not usable: {', '.join(row.reasons)}; measure again on a quiet machine"


def note_on_machines(reports: Sequence[BenchReport]) -> list[str]:
    """A note where the reports do not come from one machine and installation."""
    kinds = {repr([r.environment.get(part) for part in ("processor", "gpu", "torch", "variables")]) for r in reports}
    return [f"the reports come from {len(kinds)} machines or settings; p95 on one says little about another"] if len(kinds) > 1 else []

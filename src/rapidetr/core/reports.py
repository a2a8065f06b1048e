"""What a benchmark found: frozen records that go to JSON and back, and a table to read. docs/benchmarking.md explains every field."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from rapidetr.core.errors import ConfigError
from rapidetr.core.statistics import Interval, checked, least_samples, percentile, percentile_interval, spread

SCHEMA = "rapidetr.bench/1"
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),),
    "dict": (dict,), "tuple": (list,), "Interval": (list,), "Latency": (dict,),
}  # fmt: skip


class Strict:
    """Dataclasses whose `from_dict` refuses unknown, missing and mistyped fields."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_dict(cls, record: Any) -> Self:
        """Inverse of `to_dict`; ConfigError names the fields that are wrong."""
        known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(record, dict) or set(record) != set(known):
            got = set(map(str, record)) if isinstance(record, dict) else set()
            raise ConfigError(f"{cls.__name__}: missing {sorted(set(known) - got)}, unknown {sorted(got - set(known))}; measure again")
        for name, kind in known.items():
            wanted = [t for part in kind.split(" | ") for t in KINDS[re.split(r"\[", part)[0]]]
            value = record[name]
            if not isinstance(value, tuple(wanted)) or (isinstance(value, bool) and bool not in wanted):
                raise ConfigError(f"{cls.__name__}: {name} is {value!r:.80}; expected {kind}")
        try:
            return cls(**{name: cls.restored(name, value) for name, value in record.items()})
        except ConfigError:
            raise
        except (TypeError, ValueError) as problem:
            raise ConfigError(f"{cls.__name__}: {problem}; expected a record that to_dict wrote") from None

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        """A field in its own type again; lists become tuples."""
        return tuple(map(tuple, value)) if name == "totals_ms" else tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Latency(Strict):
    """Milliseconds of `count` runs. A percentile that needs more runs than there are is None, and so is its interval.

    `spread` is the width of the middle half as a part of the median; intervals are 95 % bootstrap intervals.
    """

    count: int
    mean: float
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    max: float
    spread: float
    p50_interval: Interval
    p95_interval: Interval | None

    @classmethod
    def measure(cls, rounds_ms: Any, *, seed: int = 0) -> Latency:
        """Of runs [R] or of rounds [R, k]."""
        runs = checked(np.asarray(rounds_ms, np.float64))

        def known(p: float) -> float | None:
            return percentile(runs, p) if runs.size >= least_samples(p) else None

        p95 = known(95)
        return cls(
            count=runs.size,
            mean=float(runs.mean()),
            p50=float(np.median(runs)),
            p90=known(90),
            p95=p95,
            p99=known(99),
            max=float(runs.max()),
            spread=spread(runs),
            p50_interval=percentile_interval(runs, 50, seed=seed),
            p95_interval=None if p95 is None else percentile_interval(runs, 95, seed=seed),
        )


@dataclass(frozen=True)
class BenchRow(Strict):
    """One setting, measured. Sizes are (height, width); latencies are of one call of `batch` pictures."""

    model: str  # the variant, or the user's name for the network
    artifact: str  # what was loaded: a name, a file, a run folder
    size_hw: tuple[int, int]
    decoder_layers: int
    queries: int
    gmacs: float  # 10^9 multiply-adds of one picture (core/work.py)
    engine: str
    precision: str
    device: str
    threads: int
    batch: int
    streams: int
    prefetch: int
    load: str  # closed or open
    rate: float | None  # arrivals of pictures a second under open load
    file_cache: str  # warm or cold, at the start of the timed runs
    stages: dict[str, Latency]  # the stages of core/clock.py that ran, "wait" where there was waiting, and "total"
    unaccounted: float | None  # part of the total outside all stages; None where stages overlap (prefetch)
    images_per_second: float
    totals_ms: tuple[tuple[float, ...], ...]  # [rounds][calls], for comparison by rounds
    forward_only: Latency | None  # the engine alone on a prepared batch
    cold_start_s: float | None  # from a fresh process to the first detection
    compile_s: float | None  # part of loading that compiles; 0 where nothing compiles
    peak_process_mb: float
    peak_device_mb: float | None
    noise: dict[str, Any]  # what the sensors saw during the timed runs
    usable: bool
    reasons: tuple[str, ...]  # why it is not usable, and what else to know

    @property
    def total(self) -> Latency:
        return self.stages["total"]

    @property
    def setting(self) -> str:
        """What makes this row differ from others of its artifact, in words."""
        load = f"open {self.rate:g}/s" if self.rate else "closed"
        return f"batch {self.batch}, streams {self.streams}, prefetch {self.prefetch}, threads {self.threads}, {load}"

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        if name == "stages":
            return {stage: Latency.from_dict(record) for stage, record in value.items()}
        if name == "forward_only" and value is not None:
            return Latency.from_dict(value)
        return super().restored(name, value)


@dataclass(frozen=True)
class BenchReport(Strict):
    """All rows of one artifact on one machine."""

    schema: str
    created: str  # ISO 8601, UTC
    command: str
    environment: dict[str, Any]  # runtime/environment.py
    artifact_sha256: str | None  # None where there is no file (random weights)
    dataset: dict[str, Any]  # path, sha256, pictures, split
    ap: dict[str, Any] | None  # COCO's numbers of boxes and masks, 0..1, where annotations are given
    published: dict[str, Any] | None  # figures of the variant, with their scope
    rows: tuple[BenchRow, ...]

    @classmethod
    def from_dict(cls, record: Any) -> Self:
        if isinstance(record, dict) and record.get("schema") != SCHEMA:
            raise ConfigError(f"report has schema {record.get('schema')!r}; expected {SCHEMA}, measure again with this version")
        return super().from_dict(record)

    @classmethod
    def restored(cls, name: str, value: Any) -> Any:
        return tuple(BenchRow.from_dict(row) for row in value) if name == "rows" else super().restored(name, value)

    @classmethod
    def read(cls, path: str | Path) -> BenchReport:
        """The report in a file; ConfigError names the file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ConfigError as problem:
            raise ConfigError(f"{path}: {problem}") from None
        except (ValueError, OSError) as problem:
            raise ConfigError(f"{path}: expected a report that `rapidetr bench` wrote ({problem})") from None

    def write(self, path: str | Path) -> Path:
        """The file, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(target.name + ".part")
        half.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return half.replace(target)

    def to_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(heads, rows) for people: one setting a row, milliseconds."""
        heads = ("setting", "runs", "p50 ms", "p90", "p95", "p99", "max", "spread", "images/s", "forward p50", "peak MB", "usable")
        return heads, [table_row(row) for row in self.rows]


def table_row(row: BenchRow) -> tuple[str, ...]:
    t = row.total
    forward = None if row.forward_only is None else row.forward_only.p50
    times = (number(v) for v in (t.p50, t.p90, t.p95, t.p99, t.max))
    rest = (f"{100 * t.spread:.0f}%", f"{row.images_per_second:.2f}", number(forward), f"{row.peak_process_mb:.0f}")
    return (row.setting, str(t.count), *times, *rest, "yes" if row.usable else "NO")


def number(value: float | None) -> str:
    """Milliseconds for a table; `-` for what was not measured or needs more runs."""
    return "-" if value is None else f"{value:.2f}"


def find_row(rows: Sequence[BenchRow], like: BenchRow) -> BenchRow | None:
    """The row with the same load shape as `like`."""
    return next((row for row in rows if shape_of(row) == shape_of(like)), None)


def shape_of(row: BenchRow) -> tuple[Any, ...]:
    return row.batch, row.streams, row.prefetch, row.load, row.rate, row.threads, row.device

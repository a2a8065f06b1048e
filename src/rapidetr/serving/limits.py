"""What one request, one client and the whole server may cost, and how a request is refused."""

from __future__ import annotations

import ipaddress
import json
import math
from dataclasses import dataclass
from pathlib import Path

from rapidetr.core.errors import ConfigError, RapidetrError


@dataclass(frozen=True)
class ServeLimits:
    """All limits of a server. Pictures count one by one, whichever request they came with."""

    max_body_bytes: int = 32 * 2**20  # of one request
    max_held_bytes: int = 256 * 2**20  # of all requests that are in the house
    max_pixels: int = 50_000_000  # width x height of one picture, as its header says
    max_images: int = 16  # of one request
    max_batch: int = 8  # pictures that the engine gets at once
    max_queue: int = 64  # pictures in the house; what comes beyond is shed
    latency_budget_ms: float | None = None  # that waiting and a batch should take together
    deadline_ms: int = 10_000  # after which nobody waits for the answer any more; requests may ask for less
    body_timeout_s: float = 10.0  # for a whole body
    header_timeout_s: float = 10.0  # for the first line and headers of a request
    url_timeout_s: float = 5.0  # for a whole download, where addresses are taken

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; expected a number above 0")
        if not max(self.max_images, self.max_batch) <= self.max_queue:
            told = f"max_queue is {self.max_queue}, max_images {self.max_images}, max_batch {self.max_batch}"
            raise ConfigError(f"{told}; expected a queue that takes one request and one batch")


class Refusal(RapidetrError):
    """A request that is not answered: HTTP status, a name for programs, a line for people, and when to try again."""

    def __init__(self, status: int, kind: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after_s = status, kind, retry_after_s


def read_budget(path: str | Path) -> float:
    """The p95 in ms that the service_level.json of `rapidetr choose` promises."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))["limits"]["p95_ms"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"p95_ms is {value!r}")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        why = f"{type(problem).__name__}: {problem}"
        raise ConfigError(f"{path}: expected limits.p95_ms in a service_level.json of `rapidetr choose` ({why})") from None
    return float(value)


def read_keys(text: str, origin: str) -> tuple[bytes, ...]:
    """API keys, one a line; ConfigError where there is none or one is guessable (shorter than 16 characters)."""
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys or any(len(key) < 16 or not key.isascii() or not key.isprintable() for key in keys):
        raise ConfigError(f"{origin}: expected API keys of at least 16 printable ASCII characters, one a line")
    return tuple(key.encode() for key in keys)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""How long a fresh process needs until its first detections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rapidetr.core.errors import ConfigError

SCRIPT = """\
import json, sys, time
source, picture, options = json.loads(sys.argv[1])
options["size_hw"] = options.get("size_hw") and tuple(options["size_hw"])
import rapidetr
rapidetr.load(source, **options).predict(picture)
print(time.time())
"""


def run_fresh(arguments: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter with the settings of this one that loads, predicts once and ends."""
    command = [sys.executable, "-c", SCRIPT, arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAPIDETR_OFFLINE": "1"}, check=False)


def time_cold_start(
    source: str,
    picture: str,
    options: dict[str, Any],
    *,
    run: Callable[[str], subprocess.CompletedProcess[str]] = run_fresh,
    now: Callable[[], float] = time.time,
) -> float:
    """Seconds from starting an interpreter to its first detections: imports, loading and the first, slow call included.

    `now` is the clock that all processes share, `options` are those of `rapidetr.load`. Files of packages and weights are in
    the file cache if they were used before.
    ConfigError with the last line of what the process said, if it failed.
    """
    began = now()
    done = run(json.dumps([source, picture, options]))
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ConfigError(f"a fresh process could not predict {picture} with {source}: {said}")
    return float(done.stdout.split()[-1]) - began

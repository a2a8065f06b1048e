"""Loading leaves nothing behind that would slow the thread that predicts."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rapidetr.runtime.aside import aside

COUNT = """
import os, sys, time
import numpy as np, torch, rapidetr
if "serve" in sys.argv:
    from rapidetr.serving.limits import ServeLimits
    from rapidetr.serving.served import serve_detector
    from rapidetr.serving.service import Service
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
detector = rapidetr.load("pico", device="cpu")
if "serve" in sys.argv:
    service = Service(serve_detector(detector), ServeLimits(max_batch=2))
    service.warm_up(service.model)
for _ in range(300):  # helpers end a little after the thread that they helped
    loaded = threads()
    if loaded == before:
        break
    time.sleep(0.1)
detector.predict([np.zeros((300, 300, 3), np.uint8)])
print(before, loaded, threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
@pytest.mark.parametrize("words", [[], ["serve"]], ids=["load", "load and warm up"])
def test_no_helper_of_the_loading_thread_stays(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *words], capture_output=True, text=True, check=True, env={"PATH": "", "OMP_NUM_THREADS": "2"}
    )
    before, loaded, predicted = map(int, done.stdout.split())
    assert loaded == before
    assert predicted > before  # so helpers would have been seen


def test_answers_and_errors_come_through() -> None:
    names = aside(lambda: threading.current_thread().name)
    assert names.startswith("rapidetr-aside")
    assert names not in {t.name for t in threading.enumerate()}
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)

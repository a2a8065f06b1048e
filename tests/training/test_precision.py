"""Which precision a run learns in, and what people are told about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import DETECT, write_scenes

from rapidetr.training import run as run_module
from rapidetr.training.precision import half_precision, precision_note
from rapidetr.training.run import train

FAST = "bfloat16: with --precision bfloat16 a step of Nano took 0.6"


@pytest.mark.parametrize(
    ("flags", "precision", "device", "said"),
    [
        ("avx2 avx512_bf16", "auto", "cpu", FAST),
        ("amx_bf16", "auto", "cpu", FAST),
        ("avx2", "auto", "cpu", None),
        ("avx512_bf16", "bfloat16", "cpu", None),
        ("avx2", "bfloat16", "cpu", "bfloat16 is many times slower than float32"),
        ("avx2", "float16", "cpu", "float16 is many times slower than float32"),
        ("avx512_bf16", "float16", "cpu", "float16 is many times slower than bfloat16"),
        ("avx512_bf16", "float32", "cpu", None),
        ("avx2", "bfloat16", "cuda", None),
    ],
)
def test_people_are_told_what_their_processor_is_fast_in(tmp_path: Path, flags: str, precision: str, device: str, said: str | None) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"flags : {flags}\n")
    note = precision_note(precision, device, tmp_path)
    assert note is None if said is None else said in str(note)


def test_auto_stays_in_float32_on_a_cpu() -> None:
    assert half_precision("auto", "cpu") is None
    assert half_precision("bfloat16", "cpu") is torch.bfloat16


def test_a_new_run_says_it_and_a_resumed_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "precision_note", lambda precision, device: f"{precision} on {device}")
    scenes, said = write_scenes(tmp_path / "data", train=2), []

    def begin() -> None:
        train(
            scenes,
            model=DETECT,
            out=tmp_path / "run",
            weights="random",
            epochs=1,
            batch_size=2,
            device="cpu",
            report=False,
            say=said.append,
        )

    begin()
    assert said.count("auto on cpu") == 1
    (tmp_path / "run" / "record.json").unlink()
    begin()
    assert said.count("auto on cpu") == 1

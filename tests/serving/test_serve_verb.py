"""`rapidetr serve`: what its options become, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from rapidetr.cli import serve
from rapidetr.cli.main import main, verb_parser
from rapidetr.cli.serve import keys_of, limits_of, warnings


def parsed(*words: str) -> Namespace:
    return verb_parser("serve", serve).parse_intermixed_args(["pico", *words])


def test_defaults_listen_to_this_machine_alone() -> None:
    args = parsed()
    assert (args.host, args.port, args.fetch_urls, args.streams) == ("127.0.0.1", 8080, False, 1)
    limits = limits_of(args)
    assert (limits.max_body_bytes, limits.max_held_bytes, limits.latency_budget_ms) == (32 * 2**20, 256 * 2**20, None)


def test_limits_and_budget(tmp_path: Path) -> None:
    (tmp_path / "level.json").write_text(json.dumps({"limits": {"p95_ms": 40}}))
    limits = limits_of(
        parsed("--service-level", str(tmp_path / "level.json"), "--max-body-mb", "0.5", "--max-queue", "4", "--deadline-ms", "900")
    )
    assert (limits.latency_budget_ms, limits.max_body_bytes, limits.deadline_ms) == (40.0, 2**19, 900)
    assert (limits.max_queue, limits.max_images, limits.max_batch) == (4, 4, 4)  # a short queue bounds requests and batches
    assert limits_of(parsed("--latency-budget-ms", "25")).latency_budget_ms == 25.0


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAPIDETR_API_KEY", raising=False)
    assert keys_of(parsed()) == ()
    (tmp_path / "keys").write_text("key-in-the-file-1\nkey-in-the-file-2\n")
    monkeypatch.setenv("RAPIDETR_API_KEY", "key-in-environment")
    assert keys_of(parsed("--api-key-file", str(tmp_path / "keys"))) == (b"key-in-the-file-1", b"key-in-the-file-2", b"key-in-environment")


def test_an_open_door_is_warned_of() -> None:
    assert warnings("127.0.0.1", False) == warnings("0.0.0.0", True) == []
    (line,) = warnings("0.0.0.0", False)
    assert line.startswith("warning: 0.0.0.0 is open to other machines without an API key; set RAPIDETR_API_KEY or --api-key-file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--service-level", "x.json", "--latency-budget-ms", "5"), "both name a budget; expected one of them"),
        (("--service-level", "nix.json"), "nix.json: expected limits.p95_ms in a service_level.json"),
        (("--api-key-file", "nix.txt"), "nix.txt"),
        (("--port", "65536"), "expected a port, 0 to 65535, got '65536'"),
        (("--max-queue", "0"), "expected a whole number of at least 1"),
    ],
)
def test_wrong_use_ends_with_2(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["serve", "pico", *words])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("rapidetr.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "pico"]) == 2
    assert capsys.readouterr().err == "rapidetr: error: serving needs fastapi; install it with: pip install 'rapidetr[serve]'\n"

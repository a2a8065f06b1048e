"""`rapidetr lock write` and `rapidetr lock verify`."""

from __future__ import annotations

import hashlib
import json

import pytest

MESSAGE = "rapidetr: error: nix.json: no such file; expected a lock, write one with: rapidetr lock write --out nix.json\n"


@pytest.fixture(autouse=True)
def _few_variables(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)


def test_a_lock_that_was_just_written_holds(run, model, pictures):
    status, out, err = run("lock", "write", "--model", model, "--data", pictures)
    assert (status, out, err) == (0, "lock.json: environment, artifact, dataset locked\n", "")
    assert run("lock", "verify") == (0, "lock.json: nothing has drifted\n", "")


def test_drifts_are_a_table_and_status_1(run, tmp_path, monkeypatch):
    assert run("lock", "write", "--out", "here.json")[0] == 0
    record = json.loads((tmp_path / "here.json").read_text())
    record["environment"]["packages"]["Pillow"] = "0.1"
    record["environment"]["code"]["commit"] = "f" * 40
    (tmp_path / "here.json").write_text(json.dumps(record))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    status, out, err = run("lock", "verify", "here.json")
    lines = out.splitlines()
    assert (status, err) == (1, "")
    assert lines[0].split() == ["item", "locked", "now", "effect", "why"]
    assert [line.split()[0] for line in lines[1:-1]] == ["code.commit", "packages.Pillow", "variables.MALLOC_ARENA_MAX"]
    assert lines[2].split()[1] == "0.1"
    assert lines[3].split()[1:4] == ["none", "2", "speed"]
    assert lines[-1] == "here.json: 2 of 3 drifts can change speed or accuracy"


def test_drifts_that_change_nothing_leave_status_0(run, tmp_path):
    run("lock", "write")
    record = json.loads((tmp_path / "lock.json").read_text())
    record["environment"]["code"]["commit"] = "f" * 40
    (tmp_path / "lock.json").write_text(json.dumps(record))
    status, out, _ = run("lock", "verify", ".")  # a folder means the lock in it
    assert status == 0
    assert out.splitlines()[-1] == "lock.json: 0 of 1 drifts can change speed or accuracy"


def test_json_of_both(run, model, monkeypatch):
    status, out, err = run("lock", "write", "--model", model, "--json", "--quiet", "--device", "cpu")
    written = json.loads(out)
    assert (status, err, written["file"]) == (0, "", "lock.json")
    assert written["artifact"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert written["environment"]["torch"]["threads"] >= 1
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    status, out, err = run("lock", "verify", "--json")
    assert (status, err.splitlines()[-1]) == (1, "lock.json: 1 of 1 drifts can change speed or accuracy")
    assert json.loads(out) == {
        "file": "lock.json",
        "drifted": True,
        "drifts": [
            {
                "item": "variables.MALLOC_ARENA_MAX",
                "locked": None,
                "present": "2",
                "effect": "speed",
                "reason": "threads, their places, or memory",
            }
        ],
    }


def test_other_weights_are_named(run, model, make_model):
    run("lock", "write", "--model", model)
    status, out, _ = run("lock", "verify", "--model", make_model("tiny_few"))
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == ["artifact.sha256"]


@pytest.mark.parametrize(
    ("words", "err"),
    [
        (("verify", "nix.json"), MESSAGE),
        (("write", "--model", "nana"), "rapidetr: error: unknown model 'nana'; available: pico, nano,"),
        (("write", "--data", "nix"), "rapidetr: error: nix: no such file or folder; expected what is to be locked\n"),
    ],
)
def test_wrong_use_ends_with_2(run, words, err):
    status, out, told = run("lock", *words)
    assert (status, out) == (2, "")
    assert told.startswith(err)


def test_the_action_is_one_of_two(run):
    status, _, err = run("lock", "check")
    assert status == 2
    assert "argument action: invalid choice: 'check'" in err

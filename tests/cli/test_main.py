"""What all verbs have in common: help, shared options, errors, exit status, imports."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rapidetr import __version__
from rapidetr.cli import main as command
from rapidetr.cli.main import VERBS
from rapidetr.core.errors import ConfigError

SHARED = ("--json", "--device", "--threads", "--seed", "--out", "--quiet", "--debug")


def test_top_help_names_every_verb_and_version_is_the_package_version(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {name} " in out and text in out for name, (_, text) in VERBS.items())
    assert "examples:" in out
    assert run("--version") == (0, f"rapidetr {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_has_examples_and_the_shared_options(run, verb):
    status, out, _ = run(verb, "--help")
    assert status == 0
    assert f"examples:\n  rapidetr {verb}" in out
    assert [option for option in SHARED if f"  {option}" not in out] == []
    assert "exit status: 0 done; 1 done in part" in out


@pytest.mark.parametrize("verb", ["models", "licenses"])
def test_shared_options_are_accepted_where_they_change_nothing(run, verb):
    plain = run(verb, "--json")
    assert plain[0] == 0
    words = ["--json", "--device", "cpu", "--threads", "1", "--seed", "3", "--out", "nowhere", "--quiet", "--debug"]
    assert run(verb, *words) == (0, plain[1], "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "rapidetr: error: expected a verb"),
        (("pedict",), "rapidetr: error: argument VERB: invalid choice: 'pedict'"),
        (("predict",), "rapidetr predict: error: the following arguments are required: SOURCE"),
        (("predict", "a.jpg", "--thresh", "0.4"), "rapidetr predict: error: unrecognized arguments: --thresh"),
        (("models", "--threads", "0"), "rapidetr models: error: argument --threads: expected a whole number of at least 1, got '0'"),
        (
            ("predict", "a.jpg", "--size", "100x"),
            "rapidetr predict: error: argument --size: expected HEIGHTxWIDTH in pixels such as 384x512, or one number, got '100x'",
        ),
        (("convert", "a.pth"), "rapidetr convert: error: the following arguments are required: OUT"),
        (("predict", "nix.jpg"), "rapidetr: error: nix.jpg is not there; check the path"),
        (
            ("info", "nix.pth"),
            "rapidetr: error: nix.pth: no such file; expected a checkpoint file; model names such as 'nano' are for --model",
        ),
    ],
)
def test_wrong_use_is_told_and_ends_with_2(run, words, message):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(message)


def test_sizes_are_height_by_width():
    from rapidetr.cli.options import size_hw

    assert size_hw("384x512") == (384, 512)
    assert size_hw("640") == (640, 640)


class Raises(SimpleNamespace):
    """A verb that fails."""

    EXAMPLES = "  none"

    @staticmethod
    def add_arguments(parser):
        pass


def failing(monkeypatch, problem):
    def fail(args, console):
        raise problem

    monkeypatch.setattr(command, "import_module", lambda name: Raises(run=fail))


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ConfigError("this\nand that"), "rapidetr: error: this and that"),
        (PermissionError(13, "Permission denied", "results"), "rapidetr: error: [Errno 13] Permission denied: 'results'"),
        (KeyError("x"), "rapidetr: error: unexpected KeyError: 'x'; run again with --debug and report it"),
    ],
)
def test_an_exception_is_one_line_and_debug_shows_the_trace(run, monkeypatch, problem, line):
    failing(monkeypatch, problem)
    assert run("models") == (2, "", line + "\n")
    status, out, err = run("models", "--debug")
    assert (status, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith(line + "\n")


def test_an_error_is_also_a_json_document(run, monkeypatch):
    failing(monkeypatch, ConfigError("no"))
    status, out, err = run("models", "--json")
    assert (status, json.loads(out), err) == (2, {"error": "no"}, "rapidetr: error: no\n")


def test_an_interruption_ends_with_130_and_no_trace(run, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    assert run("models", "--debug") == (130, "", "rapidetr: error: interrupted\n")


LOADED = """
import sys
from rapidetr.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit:
    pass
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
print("loaded", *found, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("forbidden", "words"),
    [
        ("torch,numpy,PIL,tqdm", ["--help"]),
        ("torch,numpy,PIL,tqdm", ["--version"]),
        ("torch,numpy", ["models"]),
        ("torch,numpy", ["licenses"]),
    ]
    + [("torch", [verb, "--help"]) for verb in VERBS],
)
def test_help_and_tables_do_not_load_what_they_do_not_need(forbidden, words):
    done = subprocess.run([sys.executable, "-c", LOADED, forbidden, *words], capture_output=True, text=True, check=True)
    assert done.stderr == "loaded\n"
    assert done.stdout


def test_python_m_rapidetr_is_the_command():
    done = subprocess.run([sys.executable, "-m", "rapidetr", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rapidetr {__version__}\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe looks different there")
def test_a_reader_that_leaves_is_no_error():
    code = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from rapidetr.cli.main import main; raise SystemExit(main(['models']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_names_that_a_terminal_cannot_show_do_not_end_the_run():
    code = "from rapidetr.cli.console import Console; Console(False, False).say('caf\\u00e9 \\udc80 \\u732b')"
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, done.stdout) == (0, rb"caf\xe9 \udc80 \u732b" + b"\n")

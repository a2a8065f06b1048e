"""Reading torch files: every container, every kind of damage, and pickles that want to run code."""

from __future__ import annotations

import argparse
import builtins
import functools
import json
import operator
import os
import pathlib
import pickle
import random
import resource
import subprocess
import sys
import types
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapidetr.checkpoints.unpickle import containers, read_torch_file, sniff
from rapidetr.core.errors import CheckpointError, CheckpointMissing, UnsafeFile

REMEDY = "expected a .safetensors file, or one written by torch.save; check the path, or copy or download it again"


def content() -> dict[str, Any]:
    """What a training file may hold: weights, a namespace, containers, numbers of numpy and paths."""
    weights = OrderedDict((f"layer.{i}.weight", torch.arange(12.0).reshape(3, 4) + i) for i in range(3))
    weights["half"], weights["flag"] = torch.ones(2, dtype=torch.float16), torch.zeros(0, 0, dtype=torch.bool)
    args = argparse.Namespace(num_classes=3, class_names=["a", "b", "c"], best=np.float64(0.5), steps=np.int32(-7), ok=np.bool_(True))
    args.big_endian = np.array(1.5, dtype=">f4")[()]
    args.out, args.nested = pathlib.PurePosixPath("/runs/one"), types.SimpleNamespace(milestones=Counter([1, 2]), size=torch.Size([1, 2]))
    return {"model": weights, "args": args, "epoch": 3, "seen": {1, 2}, "note": b"bytes", "parameter": torch.nn.Parameter(torch.ones(2))}


def save(path: Path, thing: object, **options: Any) -> Path:
    torch.save(thing, path, **options)
    return path


def rewrite(path: Path, pickled: bytes) -> None:
    """Put another pickle into a torch zip, everything else and the checksums valid."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else data)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_everything_that_is_allowed(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "x.pth", content(), _use_new_zipfile_serialization=zipped)
    assert sniff(path) == ("torch" if zipped else "torch (legacy)")
    raw, wanted = read_torch_file(path), content()
    assert raw["model"].keys() == wanted["model"].keys()
    assert all(torch.equal(raw["model"][k], v) and raw["model"][k].dtype == v.dtype for k, v in wanted["model"].items())
    args = vars(raw["args"])
    assert {k: args[k] for k in ("best", "steps", "ok", "big_endian", "out")} == {
        "best": 0.5, "steps": -7, "ok": True, "big_endian": 1.5, "out": "/runs/one",
    }  # fmt: skip
    assert [type(args[k]) for k in ("best", "steps", "ok", "out")] == [float, int, bool, str]
    assert args["nested"].milestones == Counter([1, 2])
    assert (raw["seen"], raw["note"], raw["epoch"]) == ({1, 2}, b"bytes", 3)
    assert torch.equal(raw["parameter"], torch.ones(2))


def test_list_of_torch_is_left_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", content())
    for mine in ([], [argparse.Namespace]):
        with torch.serialization.safe_globals(mine):
            before = set(torch.serialization.get_safe_globals())
            assert set(mine) <= before
            read_torch_file(path)
            assert set(torch.serialization.get_safe_globals()) == before


def test_a_name_the_user_allowed_is_still_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {"model": {}, "x": Hostile(print, "no")})
    with torch.serialization.safe_globals([print]), pytest.raises(UnsafeFile):
        read_torch_file(path)


class Hostile:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def attacks(canary: str) -> list[tuple[str, object]]:
    """The global that must be named, and an object whose unpickling by Python itself would create `canary` or do other harm."""
    touch = f"open({canary!r}, 'w').close()"
    return [
        ("system", Hostile(os.system, f"touch {canary}")),
        ("eval", Hostile(eval, touch)),
        ("exec", Hostile(exec, touch)),
        ("open", Hostile(open, canary, "w")),
        ("check_call", Hostile(subprocess.check_call, ["touch", canary])),
        ("getattr", Hostile(getattr, "", "join")),
        ("getattr", Hostile(Path.touch, Path(canary))),
        ("functools.partial", functools.partial(os.system, f"touch {canary}")),
        ("operator.methodcaller", Hostile(operator.methodcaller("touch"), Path(canary))),
        ("__import__", Hostile(builtins.__import__, "os")),
        ("torch.serialization.load", Hostile(torch.load, canary)),
        ("torch.serialization.save", Hostile(torch.save, {}, canary)),
        ("torch.hub.load", Hostile(torch.hub.load, "a/b", "c")),
        ("numpy.save", Hostile(np.save, canary, 1)),
        ("multiarray._reconstruct", np.arange(3)),
        ("pickle.loads", Hostile(pickle.loads, pickle.dumps(Hostile(exec, touch)))),
        ("Hostile", Hostile),
        ("torch._utils._rebuild_sparse_tensor", torch.eye(2).to_sparse()),
        ("bytearray", Hostile(bytearray, 1 << 60)),
    ]


PLACES: dict[str, Callable[[object], object]] = {
    "alone": lambda evil: evil,
    "beside": lambda evil: {"model": {"a": torch.ones(1)}, "x": evil},
    "weight": lambda evil: {"model": {"a": evil}},
    "namespace": lambda evil: {"model": {"a": torch.ones(1)}, "args": argparse.Namespace(deep=[{"deeper": (evil,)}])},
    "key": lambda evil: {"model": {"a": torch.ones(1)}, "args": {"list": [evil] * 3}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_hostile_files_run_nothing(tmp_path: Path, place: str, zipped: bool) -> None:
    canary = tmp_path / "canary"
    for name, evil in attacks(str(canary)):
        path = save(tmp_path / "x.pth", PLACES[place](evil), _use_new_zipfile_serialization=zipped)
        with pytest.raises(UnsafeFile) as caught:
            read_torch_file(path)
        wanted = str(caught.value).removeprefix(f"{path}: wants '").split("'", 1)[0]
        assert wanted.endswith(name)
        assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = save(tmp_path / "x.pth", PLACES["namespace"](Hostile(os.system, f"touch {canary}")))
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"(S'touch x'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\nX\x07\x00\x00\x00touch x\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch x\x85R.",
    ],
    ids=["protocol 0", "protocol 2", "protocol 4"],
)
def test_message_for_hostile_files(tmp_path: Path, pickled: bytes) -> None:
    path = save(tmp_path / "x.pth", {})
    rewrite(path, pickled)
    with pytest.raises(UnsafeFile) as caught:
        read_torch_file(path)
    assert str(caught.value) == (
        f"{path}: wants 'os.system', which could run code; nothing was run. Expected only tensors, containers and argument namespaces: "
        "where you trust the file, re-save its tensors alone; there is no switch to trust it"
    )


def test_plain_pickles(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Hostile(os.system, "true")))
    with pytest.raises(UnsafeFile, match=r"wants 'posix.system'|wants 'nt.system'"):
        read_torch_file(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"this is a plain pickle; expected a \.safetensors file, or one written by torch\.save"):
        read_torch_file(path)


@pytest.mark.parametrize("name", ["argparse.Namespace.__init__", "torch.storage.FloatStorage.from_file", "collections.OrderedDict.update"])
def test_parts_of_allowed_names_are_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "x.pth", {})
    module, rest = name.split(".", 1)
    rewrite(path, f"\x80\x02c{module}\n{rest}\n)R.".encode("latin-1"))
    with pytest.raises(UnsafeFile, match=f"wants '{name}'"):
        read_torch_file(path)


def test_long_names_are_cut_in_messages(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {})
    rewrite(path, b"\x80\x02cevil\n" + b"n" * 5000 + b"\n)R.")
    with pytest.raises(UnsafeFile) as caught:
        read_torch_file(path)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("name", ["x/data.pkl", "x/DATA.PKL", "X/data.pkl"])
def test_two_pickles_of_one_name(tmp_path: Path, name: str) -> None:
    """A second member of the same name, which torch reads without regard to case, could show the check one pickle and torch another."""
    path = save(tmp_path / "x.pth", {"model": {}})
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, b"cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="members are compressed or doubled"):
        read_torch_file(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", {"model": {}})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/9", bytes(10_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="members are compressed or doubled"):
        read_torch_file(path)


def test_endless_instructions_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapidetr.checkpoints.unpickle._MAX_PICKLE_STEPS", 1000)
    path = save(tmp_path / "x.pth", {})
    rewrite(path, b"\x80\x02}" + b"K\x00" * 1001 + b".")
    with pytest.raises(CheckpointError, match="its pickle has far more instructions, or repeats more, than weights need"):
        read_torch_file(path)


BOMB = b"N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))  # None, then 60 times the pair of what was before, twice
LIST = b"(]q\xf0N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(22)) + b"a"  # 4 million pairs in a list


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02}" + BOMB + b"Ns.", b"\x80\x02" + LIST + b"cbuiltins\nset\nh\xf0\x85R" * 1000 + b"t."], ids=["key", "set"]
)
def test_keys_that_take_for_ever_to_hash(tmp_path: Path, pickled: bytes) -> None:
    path = save(tmp_path / "x.pth", {})
    rewrite(path, pickled)
    with pytest.raises(CheckpointError, match="its pickle has far more instructions, or repeats more, than weights need"):
        read_torch_file(path)


OTHERS = {
    "an HTML page (often the error page of a download)": b"<!DOCTYPE html><html><body>404</body></html>",
    "a text file": b"Not found\n",
    "a zip archive of something else": None,
    "a TorchScript archive": None,
    "safetensors": (16).to_bytes(8, "little") + b'{"__metadata__":' + bytes(20),
    "an ONNX model": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(40),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "a JPEG picture": b"\xff\xd8\xff\xe0" + bytes(20),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "a GGUF model": b"GGUF\x03" + bytes(20),
    "a gzip archive": b"\x1f\x8b\x08" + bytes(20),
    "a Git LFS pointer, not the file itself": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a tar archive (torch before 0.2 wrote those; re-save it with a newer torch)": b"pickle".ljust(257, b"\0") + b"ustar" + bytes(250),
    "none of the formats that are known": b"\x00\x01\x02\x03" * 20,
}


@pytest.mark.parametrize("words", OTHERS)
def test_files_of_something_else(tmp_path: Path, words: str) -> None:
    path = tmp_path / "x.pth"
    if OTHERS[words] is None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("x/data.pkl", "x/constants.pkl") if "Script" in words else ("readme.txt",):
                archive.writestr(name, "hello")
    else:
        path.write_bytes(OTHERS[words] or b"")
    assert sniff(path) == words
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    assert str(caught.value) == f"{path}: this is {words}; {REMEDY}"


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing) as missing:
        read_torch_file(tmp_path / "none.pth")
    assert str(missing.value) == f"{tmp_path / 'none.pth'}: there is no such file; expected a checkpoint"
    with pytest.raises(CheckpointError) as folder:
        read_torch_file(tmp_path)
    assert str(folder.value) == f"{tmp_path}: is a folder; give the file inside it"
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(CheckpointError) as empty:
        read_torch_file(tmp_path / "empty.pth")
    assert str(empty.value) == f"{tmp_path / 'empty.pth'}: the file is empty; {REMEDY}"
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch_file("nul\0byte")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_cut_off_anywhere(tmp_path: Path, zipped: bool) -> None:
    whole = save(tmp_path / "whole.pth", {"model": {"a": torch.ones(50)}}, _use_new_zipfile_serialization=zipped).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(1, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)
    assert "cut off" in str(caught.value)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a list; expected a dict with the weights of a model$"):
        read_torch_file(save(tmp_path / "x.pth", [torch.ones(1)]))


def test_torch_file_named_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"this is a torch file named \.safetensors; rename it to \.pth$"):
        read_torch_file(save(tmp_path / "x.safetensors", {"model": {}}))


def test_strange_numpy_scalars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ValueError: numpy scalar of type"):
        read_torch_file(save(tmp_path / "x.pth", {"model": {}, "x": np.str_("hello")}))


ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ({"model": {"a": ONE}}, "rfdetr"),
        ({"model": {"module.a": ONE}, "ema_model": {"a": ONE * 2}}, "rfdetr"),
        ({"model": {"a": ONE}, "state_dict": {"model.a": ONE * 2}, "pytorch-lightning_version": "2"}, "rfdetr"),
        ({"state_dict": {"model.a": ONE}, "pytorch-lightning_version": "2"}, "lightning"),
        ({"state_dict": {"model._orig_mod.a": ONE}}, "lightning"),
        ({"state_dict": {"model.module.module._orig_mod.a": ONE}}, "lightning"),
        ({"ema_model": {"module.a": ONE}}, "rfdetr"),
        ({"a": torch.nn.Parameter(ONE)}, "bare state dict"),
        ({"_orig_mod.a": ONE}, "bare state dict"),
    ],
)
def test_containers(raw: dict[str, Any], kind: str) -> None:
    found = containers(raw)
    assert list(found.state) == ["a"]
    assert torch.equal(found.state["a"], ONE)
    assert not found.state["a"].requires_grad
    assert (found.kind, found.args, found.model_config, found.model_name, found.version) == (kind, {}, None, None, None)
    only_ema = ["the file has no 'model', only 'ema_model': its averaged weights are used"]
    assert found.notes == (only_ema if list(raw) == ["ema_model"] else [])


def test_prefixes_inside_a_name_stay_but_for_compiled_parts() -> None:
    found = containers({"model": {"head.model.a": ONE, "backbone._orig_mod.b": ONE}})
    assert list(found.state) == ["head.model.a", "backbone.b"]


def test_what_is_said_about_the_weights() -> None:
    args = {"num_classes": 2, "class_names": ["a", "b"]}
    extra = {"model_config": {"patch_size": 16}, "model_name": "RFDETRNano", "rfdetr_version": "1.11.2"}
    for record in (args, argparse.Namespace(**args), types.SimpleNamespace(**args)):
        found = containers({"model": {"a": ONE}, "args": record, **extra})
        assert (found.args, found.model_config, found.model_name, found.version) == (args, {"patch_size": 16}, "RFDETRNano", "1.11.2")
    lightning = containers({"state_dict": {"a": ONE}, "hyper_parameters": {"model_config": {"patch_size": 14}}})
    assert lightning.model_config == {"patch_size": 14}
    strange = containers({"model": {"a": ONE}, "args": {1: 2, "b": 3}, "model_name": 7, "model_config": [], "rfdetr_version": None})
    assert (strange.args, strange.model_config, strange.model_name, strange.version) == ({"b": 3}, None, None, None)


def test_names_of_a_bundle(tmp_path: Path) -> None:
    path, names = tmp_path / "weights.pt", tmp_path / "class_names.txt"
    raw: dict[str, Any] = {"model": {"a": ONE}, "args": {"class_names": []}}
    assert containers(raw, path).args == {"class_names": []}
    assert containers({**raw, "class_names": ["x"]}, path).args == {"class_names": ["x"]}
    names.write_text("cat\n big dog \n\nkäfer\n", "utf-8")
    found = containers(raw, path)
    assert found.args == {"class_names": ["cat", "big dog", "käfer"]}
    assert found.notes == [f"class names were read from {names}"]
    assert containers({"model": {"a": ONE}, "args": {"class_names": ["x"]}}, path).args == {"class_names": ["x"]}
    assert containers(raw, tmp_path / "other.pth").args == {"class_names": []}
    names.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"class_names\.txt: cannot be read as class names, one a line"):
        containers(raw, path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model": {"a": ONE, "b": 3}}, "x.pth: entry 'b' is of type int; expected tensors under names"),
        ({"model": {7: ONE}}, "x.pth: entry '7' is of type Tensor; expected tensors under names"),
        ({"model": {(1, 2): ONE}}, "x.pth: entry 'tuple' is of type Tensor; expected tensors under names"),
        ({"model": {"a": {"b": ONE}}}, "x.pth: entry 'a' is of type dict; expected tensors under names"),
        ({"epoch": 3}, "x.pth: entry 'epoch' is of type int; expected tensors under names"),
        ({"n" * 300: 1}, f"x.pth: entry '{'n' * 99}…' is of type int; expected tensors under names"),
        ({"model": {}}, f"x.pth: holds no weights; {REMEDY}"),
        ({}, f"x.pth: holds no weights; {REMEDY}"),
        ({"model": {"a": ONE, "module.a": ONE}}, "x.pth: two weights are called a once the prefixes are taken off; expected one"),
        (
            {"state_dict": {"model.backbone.0.encoder.base_model.model.encoder.x.lora_A": ONE}},
            "x.pth: holds LoRA weights (model.backbone.0.encoder.base_model.model.encoder.x.lora_A); "
            "merge them with the official package first, then load the merged file",
        ),
        ({"a": torch.ones(1).expand(9)}, "x.pth: weight a of shape (9,) is not a plain tensor with all its values"),
        ({"a": torch.eye(2).to_sparse()}, "x.pth: weight a of shape (2, 2) is not a plain tensor with all its values"),
        ({"a": torch.empty(2, device="meta")}, "x.pth: weight a of shape (2,) is not a plain tensor with all its values"),
    ],
)
def test_states_that_cannot_be_used(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        containers(raw, "x.pth")
    assert str(caught.value) == message


NAMED = [
    "os system",
    "builtins eval",
    "argparse Namespace",
    "types SimpleNamespace",
    "torch FloatStorage",
    "torch._utils _rebuild_tensor_v2",
]
NAMED += ["numpy dtype", "numpy.core.multiarray scalar", "pathlib PosixPath", "collections Counter", "_codecs encode", "builtins set"]
SNIPPETS = [b"c%s\n%s\n" % tuple(name.encode().split()) for name in NAMED]
SNIPPETS += [
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"J\xff\xff\xff\x7f",
    b"K\x00",
    b"q\x00",
    b"h\x00",
    b"h\x05",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x81",
]
SNIPPETS += [bytes([op]) for op in b"N()}]tRbQsuae.02"]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a byte, a piece doubled, cut out or moved, or a pickle instruction put in."""
    for _ in range(rng.randint(1, 4)):
        at, span = rng.randrange(len(data)), rng.randint(1, 24)
        piece = data[at : at + span]
        change = rng.randrange(6)
        if change == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif change == 1:
            data = data[:at] + piece + data[at:]
        elif change == 2:
            data = data[:at] + data[at + span :] or b"."
        elif change == 3:
            data = data.replace(piece, rng.choice(SNIPPETS), 1) or b"."
        else:
            data = data[:at] + rng.choice(SNIPPETS) + data[at:]
    return data


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """What became of `count` damaged files; every fourth is damaged outside, the others inside a valid zip or after a valid magic."""
    rng, path = random.Random(seed), folder / "x.pth"
    zipped = save(folder / "zip.pth", content()).read_bytes()
    legacy = save(folder / "old.pth", content(), _use_new_zipfile_serialization=False).read_bytes()
    with zipfile.ZipFile(folder / "zip.pth") as archive:
        pickled = archive.read("zip/data.pkl")
    outcomes: Counter[str] = Counter()
    inside = 0
    for i in range(count):
        if i % 4 == 0:
            path.write_bytes(mutate(rng.choice([zipped, legacy]), rng))
        elif i % 4 == 1:
            path.write_bytes(legacy[:15] + mutate(legacy[15:], rng))
        else:
            path.write_bytes(zipped)
            rewrite(path, mutate(pickled, rng))
        inside += i % 4 > 0 and sniff(path).startswith("torch")
        try:
            found = containers(read_torch_file(path), path)
            outcomes["loaded"] += 1
            assert all(tensor.clone().sum() is not None for tensor in found.state.values())
        except CheckpointError as problem:
            message = str(problem)
            outcomes[type(problem).__name__ if len(message) < 600 and "\n" not in message else message] += 1
    return {"inside": inside, "outcomes": outcomes}


def check_fuzz(result: dict[str, Any], count: int) -> None:
    assert sum(result["outcomes"].values()) == count
    assert result["inside"] >= count / 3
    assert set(result["outcomes"]) == {"loaded", "CheckpointError", "UnsafeFile"}


def test_fuzz_a_little(tmp_path: Path) -> None:
    check_fuzz(fuzz(tmp_path, 300, seed=1), 300)


@pytest.mark.slow
def test_fuzz(tmp_path: Path) -> None:
    """In a process of its own, so that a crash, a hang or a hunger for memory fails this test and nothing else."""
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path), "5000", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    check_fuzz(json.loads(done.stdout.splitlines()[-1]), 5000)


if __name__ == "__main__":
    # 3 GB on top of what torch maps when it starts; 120 s of CPU for at most some thousands of files
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (3 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    print(json.dumps(fuzz(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

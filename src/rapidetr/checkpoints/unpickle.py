"""Reading files that torch.save wrote, without ever running code from them.

Two walls: the pickle is first read as a list of instructions, and a file that names any global outside `_ALLOWED` is refused
before torch sees it; then torch's own weights-only reader builds the objects. There is no switch to trust a file.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import threading
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapidetr.core.errors import CheckpointError, CheckpointMissing, RapidetrError, UnsafeFile

# Storages, dtypes and rebuild functions of plain tensors; containers; the two argument namespaces. Far less than torch allows.
_ALLOWED = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.(storage\.)?[A-Z]\w*Storage|torch\.(Size|device)"
    r"|torch\.(bool|bfloat16|(float|int|uint|complex)\d+\w*)|collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.set"
    r"|_codecs\.encode|argparse\.Namespace|types\.SimpleNamespace|numpy\.dtype|numpy\.(_core|core)\.multiarray\.scalar"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
)
_MAX_PICKLE_BYTES = 32 << 20  # a training file of the largest variant has about 1 MB
_MAX_PICKLE_STEPS = 500_000  # and under 100,000 instructions; reading takes about 5 s for a million
_MAX_PICKLE_WORK = 200_000_000  # hashing so many nested objects takes some seconds
_MAX_NAMES_BYTES = 1 << 20
_LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MAGIC = (
    (b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"\x89HDF", "an HDF5 file"), (b"GGUF", "a GGUF model"),
    (b"\x93NUMPY", "a NumPy array"), (b"\x1f\x8b", "a gzip archive"), (b"7z\xbc\xaf", "a 7z archive"), (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"), (b"\x80", "a plain pickle"),
)  # fmt: skip
_REMEDY = "expected a .safetensors file, or one written by torch.save; check the path, or copy or download it again"


def sniff(path: str | Path) -> str:
    """What a file is by its first bytes: "torch", "torch (legacy)", "safetensors", or words for anything else.

    Raises CheckpointMissing, and CheckpointError for a folder, an empty file or one that may not be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head, size = file.read(512), path.stat().st_size
    except FileNotFoundError:
        raise CheckpointMissing(f"{path}: there is no such file; expected a checkpoint") from None
    except (OSError, ValueError) as problem:
        what = "is a folder; give the file inside it" if path.is_dir() else f"cannot be read ({_short(problem)})"
        raise CheckpointError(f"{path}: {what}") from None
    if not head:
        raise CheckpointError(f"{path}: the file is empty; {_REMEDY}")
    if head[:4] == b"PK\x03\x04":
        return _sniff_zip(path)
    if head[0] == 0x80 and head[2:].startswith(_LEGACY_MAGIC):
        return "torch (legacy)"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= max(size, 100 << 20):
        return "safetensors"
    return _sniff_other(head)


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises half a dozen types for damage
        return "a zip archive that is cut off or damaged"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive"
    return "torch" if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names) else "a zip archive of something else"


def _sniff_other(head: bytes) -> str:
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive (torch before 0.2 wrote those; re-save it with a newer torch)"
    if head[0] == 8 and head[1] < 32 and head[2:3] in (b"\x12", b"\x1a", b":"):
        return "an ONNX model"
    if b"<html" in head.lower() or b"<!doctype" in head.lower():
        return "an HTML page (often the error page of a download)"
    text = sum(byte in b"\t\n\r" or byte >= 32 for byte in head) == len(head)
    return "a text file" if text else "none of the formats that are known"


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """The dict that torch.save wrote, tensors on the CPU and mapped from the file where its format allows that.

    Numbers of numpy come back as Python numbers and paths as strings. Raises CheckpointMissing, UnsafeFile when the pickle
    names anything that is not a tensor or a plain container, and CheckpointError for every other file.
    """
    path = Path(path)
    kind = sniff(path)
    if kind not in ("torch", "torch (legacy)", "a plain pickle"):
        raise CheckpointError(f"{path}: this is {kind}; {_REMEDY}")
    if kind == "torch" and path.suffix == ".safetensors":  # torch.load would go by the name and not by the bytes
        raise CheckpointError(f"{path}: this is a torch file named .safetensors; rename it to .pth")
    with _one_error_type(path):
        _inspect(path, kind)
        if kind == "a plain pickle":
            raise CheckpointError(f"{path}: this is {kind}; {_REMEDY}")
        with _allow():
            raw = torch.load(str(path), map_location="cpu", weights_only=True, mmap=kind == "torch")
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds a {type(raw).__name__}; expected a dict with the weights of a model")
    return raw


@contextmanager
def _one_error_type(path: Path) -> Iterator[None]:
    """Damage shows up as any of a dozen exception types, in torch, zipfile and pickle; callers see one."""
    try:
        yield
    except RapidetrError:
        raise
    except Exception as problem:
        raise CheckpointError(f"{path}: the file is damaged or cut off ({type(problem).__name__}: {_short(problem)}); {_REMEDY}") from None


def _short(thing: object, limit: int = 100) -> str:
    words = " ".join(str(thing).split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _inspect(path: Path, kind: str) -> None:
    """Raise UnsafeFile if a pickle of the file names a global outside `_ALLOWED`, CheckpointError if building it would take for ever."""
    stream, steps, work = io.BytesIO(_pickle_bytes(path, kind)), 0, 0
    for _ in range(5 if kind == "torch (legacy)" else 1):  # legacy: magic, version, system, the object, keys of storages
        strings, weigher = ["?", "?"], _Weigher()
        for op, value, _ in pickletools.genops(stream):
            if op.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                name = ".".join(strings[-2:]) if op.name == "STACK_GLOBAL" else str(value).replace(" ", ".")
                if not _ALLOWED.fullmatch(name):
                    raise UnsafeFile(
                        f"{path}: wants {_short(name, 80)!r}, which could run code; nothing was run. Expected only tensors, containers and "
                        "argument namespaces: where you trust the file, re-save its tensors alone; there is no switch to trust it"
                    )
            elif isinstance(value, str):
                strings = [strings[-1], value]
            steps, work = steps + 1, work + weigher.step(op, value)
            if steps > _MAX_PICKLE_STEPS or work > _MAX_PICKLE_WORK:
                raise CheckpointError(f"{path}: its pickle has far more instructions, or repeats more, than weights need; {_REMEDY}")


class _Weigher:
    """Follows the stack of a pickle and counts the objects that each step handles.

    Forty nested pairs (t, t) are a hundred bytes of pickle, and hashing them as a key visits 2**40 objects.
    """

    def __init__(self) -> None:
        self.stack: list[list[int] | None] = []  # a cell with the weight of each object; None is a mark
        self.memo: dict[int, list[int]] = {}

    def step(self, op: pickletools.OpcodeInfo, value: object) -> int:
        """Weight of all that this instruction takes from the stack."""
        if op.name == "MARK":
            self.stack.append(None)
            return 0
        if op.name.endswith("PUT"):
            self.memo[int(str(value))] = self.stack[-1] or [1]
            return 0
        if op.name.endswith("GET"):
            self.stack.append(self.memo[int(str(value))])
            return 1
        taken = self._take(op)
        work = sum(cell[0] for cell in taken)
        if op.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            taken[0][0] = work  # the container itself grows, for all who hold it
            self.stack.append(taken[0])
        else:
            self.stack += [[work + 1] for _ in op.stack_after]
        return work

    def _take(self, op: pickletools.OpcodeInfo) -> list[list[int]]:
        """What the instruction pops, deepest first: a fixed number, or all above the last mark and some below it."""
        taken, count = [], len(op.stack_before)
        if pickletools.markobject in op.stack_before:
            while (cell := self.stack.pop()) is not None:
                taken.append(cell)
            count = op.stack_before.index(pickletools.markobject)
        taken += [self.stack.pop() or [1] for _ in range(count)]
        return taken[::-1]


def _pickle_bytes(path: Path, kind: str) -> bytes:
    """The part of the file that holds instructions."""
    if kind != "torch":
        with path.open("rb") as file:
            return file.read(_MAX_PICKLE_BYTES)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # torch stores and never compresses; two members of one name could show this check one pickle and torch, to which DATA.PKL is
        # data.pkl, another
        names = {name.lower() for name in archive.namelist()}
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or len(names) != len(members):
            raise CheckpointError(f"{path}: members are compressed or doubled, as torch.save never leaves them; {_REMEDY}")
        name = members[0].filename.split("/")[0] + "/data.pkl"
        if archive.getinfo(name).file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: its pickle is larger than {_MAX_PICKLE_BYTES >> 20} MB; {_REMEDY}")
        return archive.read(name)


class _Dtype:
    """Stands in for numpy.dtype, whose own unpickling trusts sizes that the file gives."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise ValueError(f"numpy scalar of type {_short(code)}")
        self.dtype = np.dtype("<" + code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


def _scalar(kind: _Dtype, data: bytes) -> bool | int | float:
    """Stands in for numpy's reader of scalars; a Python number."""
    number: bool | int | float = np.frombuffer(data, kind.dtype, 1)[0].item()
    return number


def _path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


_SAFE: list[Any] = [argparse.Namespace, types.SimpleNamespace, (_Dtype, "numpy.dtype")]
_SAFE += [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_SAFE += [(_path, f"pathlib.{p}{w}Path") for p in ("", "_local.", "Pure", "_local.Pure") for w in ("", "Posix", "Windows")]
_SAFE_LOCK = threading.Lock()


@contextmanager
def _allow() -> Iterator[None]:
    """Adds our names to torch's list while a file is read; names that the user had added stay, other threads wait."""
    with _SAFE_LOCK:
        before = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([name for name in _SAFE if name not in before]):
            yield


@dataclass
class Contents:
    """What a foreign checkpoint holds. `args` and `model_config` are as written: nothing in them is checked yet."""

    state: dict[str, Tensor]
    args: dict[str, Any]
    model_config: dict[str, Any] | None
    model_name: str | None
    version: str | None  # of the official package that wrote it
    kind: str  # "rfdetr", "lightning", "bare state dict"
    notes: list[str] = field(default_factory=list)  # choices that were made, to be shown to the user


def containers(raw: dict[str, Any], path: str | Path = "checkpoint") -> Contents:
    """The weights and what is said about them, from any container of the official package, Lightning or Roboflow.

    `path` names the file in messages; a bundle's class_names.txt is looked for beside a weights.pt. Raises CheckpointError.
    """
    path, notes = Path(path), []
    kind = "bare state dict"
    for key, kind_of_key in (("model", "rfdetr"), ("state_dict", "lightning"), ("ema_model", "rfdetr")):
        if isinstance(raw.get(key), dict):
            state, kind = raw[key], kind_of_key
            if key == "ema_model":
                notes.append("the file has no 'model', only 'ema_model': its averaged weights are used")
            break
    else:
        state = raw
    args = _fields(raw.get("args")) or _fields(raw.get("hyper_parameters"))
    if not args.get("class_names"):
        bundled = raw.get("class_names")
        args.update({"class_names": bundled} if isinstance(bundled, list) and bundled else _names_beside(path, notes))
    config = next((c for c in (raw.get("model_config"), args.get("model_config")) if isinstance(c, dict)), None)
    name, version = (v if isinstance(v, str) else None for v in (raw.get("model_name"), raw.get("rfdetr_version")))
    return Contents(_clean(state, path), args, config, name, version, kind, notes)


def _fields(record: object) -> dict[str, Any]:
    """A namespace or dict of hyper-parameters as a dict; {} for anything else."""
    if isinstance(record, argparse.Namespace | types.SimpleNamespace):
        record = vars(record)
    return {k: v for k, v in record.items() if isinstance(k, str) and not isinstance(v, Tensor)} if isinstance(record, dict) else {}


def _names_beside(path: Path, notes: list[str]) -> dict[str, Any]:
    """Class names of a Roboflow bundle, one a line, where the file has none."""
    beside = path.with_name("class_names.txt")
    try:
        if path.name != "weights.pt" or not beside.is_file():
            return {}
        with beside.open(encoding="utf-8") as file:
            text = file.read(_MAX_NAMES_BYTES)
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{beside}: cannot be read as class names, one a line ({_short(problem)})") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    notes.append(f"class names were read from {beside}")
    return {"class_names": names} if names else {}


def _clean(state: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors under their plain names, wrappers' prefixes taken off."""
    clean: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            what = _short(key) if isinstance(key, str | int) else type(key).__name__
            raise CheckpointError(f"{path}: entry {what!r} is of type {type(value).__name__}; expected tensors under names")
        name = re.sub(r"^((model|module)\.)+", "", key.replace("_orig_mod.", ""))
        if name.startswith("backbone.0.encoder.base_model.model."):
            raise CheckpointError(
                f"{path}: holds LoRA weights ({_short(key)}); merge them with the official package first, then load the merged file"
            )
        if name in clean:
            raise CheckpointError(f"{path}: two weights are called {_short(name)} once the prefixes are taken off; expected one")
        clean[name] = _plain(value, key, path)
    if not clean:
        raise CheckpointError(f"{path}: holds no weights; {_REMEDY}")
    return clean


def _plain(value: Tensor, key: str, path: Path) -> Tensor:
    """The tensor without its gradient flag, if it is an ordinary one whose values are all in the file."""
    plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    # a few stored numbers can be declared as a tensor of any size by strides of 0: copying it would fill the memory
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: weight {_short(key)} of shape {_short(tuple(value.shape))} is not a plain tensor with all its values"
        )
    return value.detach()

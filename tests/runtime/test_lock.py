"""The lock: every kind of drift is found and named, nothing else is, and loading under it refuses."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest

import rapidetr
from rapidetr.checkpoints import download
from rapidetr.checkpoints.file import Checkpoint, save_checkpoint
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.drift import RULES, compare, shown
from rapidetr.runtime.environment import describe_environment
from rapidetr.runtime.lock import read_lock, require_lock, sha256_of, verify_lock, weights_file, write_lock

ENVIRONMENT: dict[str, Any] = {
    "version": 1,
    "device": "cuda:0",
    "processor": {
        "model": "A CPU", "architecture": "x86_64", "flags": ["avx2", "avx512f", "fma"], "microcode": "0x1", "virtual": False,
        "physical_cores": 8, "logical_cores": 16, "affinity": [0, 1, 2, 3], "quota_cores": None, "governor": "performance",
        "max_mhz": 4000.0, "min_mhz": 800.0, "turbo": True, "smt": True,
    },
    "memory": {"total_bytes": 16 << 30, "limit_bytes": None},
    "system": {"os": "Linux", "distribution": "Some 12", "kernel": "6.1.0", "libc": "glibc 2.36"},
    "python": {"version": "3.11.7", "implementation": "CPython"},
    "packages": {
        "rapidetr": "0.1.0", "torch": "2.10.0", "numpy": "2.1.0", "Pillow": "11.0.0", "simplejpeg": "1.9.0", "safetensors": "0.5.0",
        "openvino": None, "nncf": None, "onnxruntime": "1.20.0", "onnxruntime-gpu": None, "onnxruntime-openvino": None, "tensorrt": None,
        "nvidia-ml-py": "12.560.30",
    },
    "code": {"sha256": "a" * 64, "commit": "b" * 40},
    "torch": {
        "cpu_capability": "AVX512", "onednn": "3.7", "mkl": "2024.2", "openmp": "201511", "parallel_backend": "OpenMP", "cuda": "12.8",
        "cudnn": 91002, "threads": 4, "interop_threads": 8, "flush_denormal": False, "matmul_precision": "highest",
        "cuda_matmul_precision": "ieee", "cudnn_conv_precision": "tf32", "cudnn_benchmark": False, "deterministic": False,
    },
    "gpu": {
        "name": "A GPU", "memory_bytes": 16 << 30, "driver": "570.10", "cuda_driver": "12.8", "power_limit_w": 70.0,
        "max_clock_mhz": 1590, "ecc": True,
    },
    "variables": {"OMP_NUM_THREADS": "4"},
}  # fmt: skip

DRIFTS = [
    ("device", "cpu", "both"),
    ("code.sha256", "c" * 64, "both"),
    ("code.commit", None, "none"),
    ("processor.model", "Another CPU", "both"),
    ("processor.architecture", "aarch64", "both"),
    ("processor.flags", ["avx2", "fma"], "both"),
    ("processor.microcode", "0x2", "speed"),
    ("processor.virtual", True, "speed"),
    ("processor.physical_cores", 4, "speed"),
    ("processor.logical_cores", 8, "speed"),
    ("processor.affinity", [0, 1], "speed"),
    ("processor.quota_cores", 2.0, "speed"),
    ("processor.governor", "powersave", "speed"),
    ("processor.max_mhz", 3000.0, "speed"),
    ("processor.min_mhz", 400.0, "speed"),
    ("processor.turbo", False, "speed"),
    ("processor.smt", False, "speed"),
    ("memory.total_bytes", 8 << 30, "speed"),
    ("memory.total_bytes", 32 << 30, "none"),
    ("memory.limit_bytes", 1 << 30, "speed"),
    ("system.os", "Windows", "both"),
    ("system.distribution", "Some 13", "none"),
    ("system.kernel", "6.2.0", "speed"),
    ("system.libc", "musl", "both"),
    ("python.version", "3.12.1", "speed"),
    ("python.implementation", "PyPy", "speed"),
    ("packages.rapidetr", "0.2.0", "both"),
    ("packages.torch", "2.11.0", "both"),
    ("packages.numpy", "2.2.0", "both"),
    ("packages.Pillow", "12.0.0", "both"),
    ("packages.simplejpeg", None, "both"),
    ("packages.openvino", "2025.0", "both"),
    ("packages.onnxruntime", "1.21.0", "both"),
    ("packages.onnxruntime-gpu", "1.21.0", "both"),
    ("packages.onnxruntime-openvino", "1.21.0", "both"),
    ("packages.tensorrt", "10.3", "both"),
    ("packages.safetensors", "0.6.0", "none"),
    ("packages.nvidia-ml-py", None, "none"),
    ("packages.nncf", "3.0.0", "none"),
    ("torch.cpu_capability", "AVX2", "both"),
    ("torch.onednn", "3.8", "both"),
    ("torch.mkl", None, "both"),
    ("torch.openmp", "202011", "speed"),
    ("torch.parallel_backend", "native thread pool", "speed"),
    ("torch.cuda", "13.0", "both"),
    ("torch.cudnn", 91100, "both"),
    ("torch.threads", 1, "both"),
    ("torch.interop_threads", 1, "speed"),
    ("torch.flush_denormal", True, "both"),
    ("torch.matmul_precision", "high", "both"),
    ("torch.cuda_matmul_precision", "tf32", "both"),
    ("torch.cudnn_conv_precision", "ieee", "both"),
    ("torch.cudnn_benchmark", True, "both"),
    ("torch.deterministic", True, "both"),
    ("gpu.name", "Another GPU", "both"),
    ("gpu.memory_bytes", 8 << 30, "speed"),
    ("gpu.driver", "575.20", "both"),
    ("gpu.cuda_driver", "12.9", "both"),
    ("gpu.power_limit_w", 60.0, "speed"),
    ("gpu.max_clock_mhz", 1500, "speed"),
    ("gpu.ecc", False, "speed"),
    ("variables.OMP_NUM_THREADS", "1", "speed"),
    ("variables.KMP_BLOCKTIME", "0", "speed"),
    ("variables.GOMP_CPU_AFFINITY", "0-3", "speed"),
    ("variables.MALLOC_ARENA_MAX", "2", "speed"),
    ("variables.CUDA_LAUNCH_BLOCKING", "1", "speed"),
    ("variables.MKL_ENABLE_INSTRUCTIONS", "SSE4_2", "both"),
    ("variables.ONEDNN_MAX_CPU_ISA", "AVX2", "both"),
    ("variables.DNNL_DEFAULT_FPMATH_MODE", "BF16", "both"),
    ("variables.ATEN_CPU_CAPABILITY", "default", "both"),
    ("variables.LD_PRELOAD", "libtcmalloc.so", "both"),
    ("variables.CUBLAS_WORKSPACE_CONFIG", ":4096:8", "both"),
    ("variables.NVIDIA_TF32_OVERRIDE", "1", "both"),
    ("variables.TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "both"),
]


def changed(item: str, value: Any) -> dict[str, Any]:
    """ENVIRONMENT with another value at `item`."""
    record = copy.deepcopy(ENVIRONMENT)
    section, _, name = item.partition(".")
    if name:
        record[section][name] = value
    else:
        record[section] = value
    return record


@pytest.mark.parametrize(("item", "value", "effect"), DRIFTS, ids=[f"{item}={value}" for item, value, _ in DRIFTS])
def test_each_drift_is_found_alone_in_both_directions(item: str, value: Any, effect: str) -> None:
    present = changed(item, value)
    (drift,) = compare(ENVIRONMENT, present)
    section, _, name = item.partition(".")
    locked = ENVIRONMENT[section].get(name) if name else ENVIRONMENT[section]
    assert (drift.item, drift.locked, drift.present, drift.effect) == (item, locked, value, effect)
    assert drift.reason
    assert "\n" not in drift.reason
    (back,) = compare(present, ENVIRONMENT)
    assert (back.item, back.locked, back.present) == (item, value, locked)


def test_equal_environments_have_no_drift() -> None:
    assert compare(ENVIRONMENT, copy.deepcopy(ENVIRONMENT)) == []


def test_every_item_of_a_real_record_has_its_rule_and_is_tested() -> None:
    record = describe_environment()
    items = {f"{s}.{n}" for s, entry in record.items() if isinstance(entry, dict) and s != "variables" for n in entry}
    tested = {item for item, _, _ in DRIFTS}
    assert items - tested == set()
    assert {item for item in items if not any(item == rule or item.startswith(f"{rule}.") for rule in RULES)} == set()


def test_drifts_come_in_the_order_of_the_table_and_unknown_items_last() -> None:
    present = changed("packages.torch", "9")
    present["processor"]["model"] = "x"
    present["code"]["sha256"] = "d" * 64
    present["packages"]["new engine"] = "1"
    drifts = compare(ENVIRONMENT, present)
    assert [d.item for d in drifts] == ["code.sha256", "processor.model", "packages.torch", "packages.new engine"]
    assert (drifts[-1].effect, drifts[-1].reason) == ("both", "this release does not know the item")


def test_memory_may_differ_by_what_the_kernel_keeps() -> None:
    total = ENVIRONMENT["memory"]["total_bytes"]
    assert compare(ENVIRONMENT, changed("memory.total_bytes", int(total * 0.995))) == []
    assert [d.effect for d in compare(ENVIRONMENT, changed("memory.total_bytes", int(total * 0.98)))] == ["speed"]
    lifted = compare(changed("memory.limit_bytes", 1 << 30), ENVIRONMENT)
    assert [(d.item, d.effect, d.reason) for d in lifted] == [("memory.limit_bytes", "none", "there is more than there was")]


def test_a_side_that_did_not_load_torch_does_not_compare_its_settings() -> None:
    assert compare(ENVIRONMENT, changed("torch", None)) == []
    assert compare(changed("torch", None), ENVIRONMENT) == []


def test_a_gpu_that_is_gone_is_a_drift() -> None:
    drifts = compare(ENVIRONMENT, changed("gpu", {}))
    assert {d.item for d in drifts} == {f"gpu.{name}" for name in ENVIRONMENT["gpu"]}
    assert all(d.present is None for d in drifts)


def test_values_are_shown_short() -> None:
    assert [shown(v) for v in (None, [], ["a", "b"], "f" * 64, "f" * 40, 4, True, "6.1.0")] == [
        "none", "none", "a b", "f" * 12 + "…", "f" * 12 + "…", "4", "True", "6.1.0",
    ]  # fmt: skip


def same(device: str) -> dict[str, Any]:
    return copy.deepcopy(ENVIRONMENT) | {"device": device}


def moved(item: str, value: Any) -> Callable[[str], dict[str, Any]]:
    return lambda device: changed(item, value) | {"device": device}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run folder with weights, a dataset folder beside it, and the place of a lock."""
    run, data = tmp_path / "run", tmp_path / "data"
    (data / "train").mkdir(parents=True)
    run.mkdir()
    (run / "best.safetensors").write_bytes(b"weights")
    (run / "log.jsonl").write_text("1")
    (data / "train" / "a.jpg").write_bytes(b"picture")
    (data / "labels.json").write_text("{}")
    return run, data, run / "lock.json"


def test_a_lock_holds_the_environment_and_the_hashes(places: tuple[Path, Path, Path]) -> None:
    run, data, lock = places
    record = write_lock(lock, artifact=run, dataset=data, device="cuda:0", describe=same)
    assert json.loads(lock.read_text()) == record == read_lock(lock)
    assert record["environment"] == ENVIRONMENT
    assert record["artifact"] == {"path": "best.safetensors", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert record["dataset"] == {"path": str(data), "sha256": sha256_of(data)}
    assert verify_lock(lock, describe=same) == []
    (run / "log.jsonl").write_text("2")  # not part of the artifact
    assert verify_lock(lock, describe=same) == []


def test_changed_files_are_drifts(places: tuple[Path, Path, Path]) -> None:
    run, data, lock = places
    record = write_lock(lock, artifact=run, dataset=data, describe=same)
    (run / "best.safetensors").write_bytes(b"other weights")
    (data / "train" / "a.jpg").rename(data / "train" / "b.jpg")
    found = {d.item: (d.locked, d.present, d.effect) for d in verify_lock(lock, describe=same)}
    assert found == {
        "artifact.sha256": (record["artifact"]["sha256"], hashlib.sha256(b"other weights").hexdigest(), "both"),
        "dataset.sha256": (record["dataset"]["sha256"], sha256_of(data), "accuracy"),
    }
    assert [d.item for d in verify_lock(lock, dataset=False, describe=same)] == ["artifact.sha256"]
    (run / "best.safetensors").unlink()
    assert verify_lock(lock, dataset=False, describe=same)[0].present == "missing"


def test_other_places_can_be_named_and_a_folder_moves_with_its_lock(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, data, lock = places
    write_lock(lock, artifact=run, dataset=data, describe=same)
    run.rename(tmp_path / "deployed")
    data.rename(tmp_path / "photos")
    lock = tmp_path / "deployed" / "lock.json"
    assert [(d.item, d.present) for d in verify_lock(lock, describe=same)] == [("dataset.sha256", "missing")]
    assert verify_lock(lock, dataset=tmp_path / "photos", describe=same) == []
    assert [d.item for d in verify_lock(lock, artifact=tmp_path / "photos", dataset=False, describe=same)] == ["artifact.sha256"]


def test_the_locked_device_is_asked_for_unless_another_is_named(places: tuple[Path, Path, Path]) -> None:
    lock = places[2]
    write_lock(lock, device="cuda:0", describe=same)
    assert verify_lock(lock, describe=same) == []
    assert [(d.item, d.locked, d.present) for d in verify_lock(lock, device="cpu", describe=same)] == [("device", "cuda:0", "cpu")]


def test_a_folder_hash_sees_names_bytes_and_depth_but_no_lock_and_nothing_hidden(tmp_path: Path) -> None:
    seen = set()
    for name, content in (("a", b"1"), ("b", b"1"), ("a", b"2"), ("sub/a", b"1")):
        folder = tmp_path / str(len(seen))
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
        seen.add(sha256_of(folder))
        (folder / "lock.json").write_text("x")
        (folder / ".hidden").write_text("x")
        assert sha256_of(folder) in seen
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lock.json: no such file; expected a lock, write one with: rapidetr lock write --out {}"),
        ("{", "lock.json: cannot be read as a lock (Expecting property name"),
        ("[]", "lock.json: is something else; expected a lock of version 1, write one with: rapidetr lock write"),
        ('{"lock": 2, "environment": {}}', "lock.json: is version 2; expected a lock of version 1, write one with: rapidetr lock write"),
        ('{"lock": 1}', "lock.json: is version 1; expected a lock of version 1"),
    ],
)
def test_files_that_are_no_lock_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    lock = tmp_path / "lock.json"
    if content is not None:
        lock.write_text(content)
    with pytest.raises(ConfigError) as caught:
        verify_lock(lock)
    assert message.format(lock) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_to_be_locked_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data: no such file or folder; expected what is to be locked"):
        write_lock(tmp_path / "lock.json", dataset=tmp_path / "data", describe=same)
    with pytest.raises(ConfigError, match=r"unknown model 'nana'; available: pico, nano"):
        write_lock(tmp_path / "lock.json", artifact="nana", describe=same)
    assert not (tmp_path / "lock.json").exists()


def test_a_name_means_the_file_that_load_would_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = tmp_path / "cache" / "rf-detr-nano.pth"
    fetched.parent.mkdir()
    fetched.write_bytes(b"published")
    monkeypatch.setattr(download, "fetch", lambda entry: fetched if entry.filename == fetched.name else None)
    assert weights_file("nano") == fetched
    lock = tmp_path / "lock.json"
    record = write_lock(lock, artifact="nano", describe=same)
    assert record["artifact"] == {"path": "cache/rf-detr-nano.pth", "sha256": hashlib.sha256(b"published").hexdigest()}
    require_lock(lock, "nano", "cuda:0", lambda device: same("cpu"))
    fetched.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"1 item has drifted: artifact\.sha256"):
        require_lock(lock, "nano", "cuda:0", lambda device: same("cpu"))


def test_a_registry_means_the_weights_of_the_artifact_in_use(tmp_path: Path) -> None:
    for name, file in (("one", "best.safetensors"), ("two", "model.onnx")):
        folder = tmp_path / "artifacts" / name
        folder.mkdir(parents=True)
        for path in (folder / "manifest.json", folder / file):
            path.write_text("x")
    (tmp_path / "current").write_text("one\n{}\n")
    assert weights_file(tmp_path / "current") == weights_file(tmp_path) == tmp_path / "artifacts" / "one" / "best.safetensors"
    (tmp_path / "current").write_text("two\n{}\n")
    assert weights_file(tmp_path / "current") == tmp_path / "artifacts" / "two"  # other engines have no one file


def test_require_lock_names_what_drifted_and_lets_harmless_drifts_pass(places: tuple[Path, Path, Path]) -> None:
    run, data, lock = places
    write_lock(lock, artifact=run, dataset=data, device="cuda:0", describe=same)
    (data / "labels.json").unlink()  # loading uses no dataset
    for source, given in ((run, True), (run / "best.safetensors", True), (run, str(lock)), ("nano", lock)):
        require_lock(given, source, "cuda:0", same)
    require_lock(True, run, "cuda:0", moved("code.commit", None))
    with pytest.raises(ConfigError) as caught:
        require_lock(True, run, "cuda:0", moved("torch.threads", 1))
    assert str(caught.value) == (
        f"{lock}: 1 item has drifted: torch.threads (4 → 1); see what it means with: rapidetr lock verify {lock}, "
        "restore it, or lock the present state with: rapidetr lock write"
    )
    require_lock(True, run, "cuda:0", moved("torch.threads", 1), engine="onnxruntime")  # no concern of an exported file
    with pytest.raises(ConfigError, match=r"2 items have drifted: device \(cuda:0 → cpu\), torch\.threads \(4 → 1\); see"):
        require_lock(True, run, "cpu", moved("torch.threads", 1))
    with pytest.raises(ConfigError, match=r"strict_lock=True looks for lock\.json beside the weights, but nano is a name; give it a path"):
        require_lock(True, "nano", "cpu", same)


def test_load_refuses_under_a_lock_that_drifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = cases.network("tiny_det")
    labels = LabelSpace.contiguous("abcdef")
    checkpoint = Checkpoint(network.state_dict(), network.config, labels, Preprocessing(), "Apache-2.0")
    weights = save_checkpoint(checkpoint, tmp_path / "best.safetensors")
    with pytest.raises(ConfigError, match=r"lock\.json: no such file; expected a lock, write one with: rapidetr lock write --out"):
        rapidetr.load(tmp_path, device="cpu", strict_lock=True)
    write_lock(tmp_path / "lock.json", artifact=weights)
    assert rapidetr.load(tmp_path, device="cpu", strict_lock=True).class_names == list("abcdef")
    assert rapidetr.load(weights, device="cpu", strict_lock=tmp_path / "lock.json").class_names == list("abcdef")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    with pytest.raises(ConfigError, match=r"1 item has drifted: variables\.MALLOC_ARENA_MAX \(none → 3\); see"):
        rapidetr.load(tmp_path, device="cpu", strict_lock=True)
    assert rapidetr.load(tmp_path, device="cpu").class_names == list("abcdef")

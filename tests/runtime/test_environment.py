"""The environment record: read from constructed machines, never failing, never importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import rapidetr
from rapidetr.runtime.environment import describe_code, describe_environment, describe_torch
from rapidetr.runtime.host import Sources, describe_memory, describe_processor

X86 = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
microcode\t: 0x2b000590
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_bf16 avx_vnni amx_tile amx_int8 hypervisor avxes
processor\t: 1
model name\t: Some CPU @ 2.00GHz
"""
ARM = """processor\t: 0
Features\t: fp asimd aes asimddp sve sve2 i8mm bf16 xsve
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


def files(root: Path, entries: dict[str, str]) -> Path:
    for name, text in entries.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def fail(*_: Any) -> Any:
    raise OSError("not readable")


def test_processor_of_an_x86_machine(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    root = files(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            f"{cpus}/cpu0/cpufreq/scaling_governor": "performance",
            f"{cpus}/cpu1/cpufreq/scaling_governor": "powersave",
            f"{cpus}/cpu0/cpufreq/scaling_max_freq": "3500000",
            f"{cpus}/cpu1/cpufreq/scaling_max_freq": "4100000",
            f"{cpus}/intel_pstate/no_turbo": "1",
            f"{cpus}/smt/active": "1",
        },
    )
    found = describe_processor(root)
    assert found["model"] == "Some CPU @ 2.00GHz"
    assert found["flags"] == ["amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512f", "avx_vnni", "f16c", "fma", "sse4_2"]
    assert (found["microcode"], found["virtual"], found["smt"], found["turbo"]) == ("0x2b000590", True, True, False)
    assert (found["governor"], found["max_mhz"], found["min_mhz"]) == ("performance, powersave", 4100.0, None)
    assert (found["logical_cores"], found["physical_cores"]) == (psutil.cpu_count(), psutil.cpu_count(logical=False))


def test_processor_of_an_arm_machine(tmp_path: Path) -> None:
    found = describe_processor(files(tmp_path, {"proc/cpuinfo": ARM, "sys/devices/system/cpu/cpufreq/boost": "1"}))
    assert found["model"] == "ARM implementer 0x41 part 0xd4f"
    assert found["flags"] == ["asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"]
    assert (found["turbo"], found["virtual"]) == (True, None)


GROUPS_2 = {"proc/self/cgroup": "0::/kube/pod/box"}
GROUPS_1 = {"proc/self/cgroup": "4:cpuacct,cpu:/docker/abc\n9:memory:/docker/abc\n0::/"}
BASE = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("entries", "quota"),
    [
        (GROUPS_2 | {f"{BASE}/kube/pod/cpu.max": "150000 100000", f"{BASE}/kube/pod/box/cpu.max": "max 100000"}, 1.5),
        (GROUPS_2 | {f"{BASE}/kube/cpu.max": "400000 100000", f"{BASE}/kube/pod/box/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/", f"{BASE}/cpu.max": "300000 100000"}, 3.0),
        (GROUPS_1 | {f"{BASE}/cpu/docker/abc/cpu.cfs_quota_us": "250000", f"{BASE}/cpu/docker/abc/cpu.cfs_period_us": "100000"}, 2.5),
        (GROUPS_1 | {f"{BASE}/cpu/docker/abc/cpu.cfs_quota_us": "-1", f"{BASE}/cpu/docker/abc/cpu.cfs_period_us": "100000"}, None),
        (GROUPS_1 | {f"{BASE}/cpu/cpu.cfs_quota_us": "100000", f"{BASE}/cpu/cpu.cfs_period_us": "0"}, None),
        ({"proc/self/cgroup": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_tightest_quota_of_all_groups_counts(tmp_path: Path, entries: dict[str, str], quota: float | None) -> None:
    assert describe_processor(files(tmp_path, entries))["quota_cores"] == quota


@pytest.mark.parametrize(
    ("entries", "limit"),
    [
        (GROUPS_2 | {f"{BASE}/kube/pod/memory.max": "1000000", f"{BASE}/kube/memory.max": "max"}, 1_000_000),
        (GROUPS_1 | {f"{BASE}/memory/docker/abc/memory.limit_in_bytes": "2000000"}, 2_000_000),
        (GROUPS_1 | {f"{BASE}/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_memory_and_its_limit(tmp_path: Path, entries: dict[str, str], limit: int | None) -> None:
    assert describe_memory(files(tmp_path, entries)) == {"total_bytes": psutil.virtual_memory().total, "limit_bytes": limit}


def test_the_record_is_plain_json_with_all_sections() -> None:
    record = describe_environment()
    assert json.loads(json.dumps(record)) == record
    assert list(record) == [
        "version", "device", "processor", "memory", "system", "python", "packages", "code", "torch", "gpu", "variables",
    ]  # fmt: skip
    assert record["version"] == 1
    assert record["packages"]["rapidetr"] == rapidetr.__version__
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["gpu"] is None


def test_settings_of_torch_are_the_live_ones() -> None:
    before = describe_environment()["torch"]
    assert before["threads"] == torch.get_num_threads()
    assert (before["flush_denormal"], before["deterministic"]) == (False, False)
    assert before["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    if "MKL-DNN" in torch.__config__.show():
        assert f"MKL-DNN v{before['onednn']} " in torch.__config__.show()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        changed = describe_environment()["torch"]
        if torch.set_flush_denormal(True):
            assert describe_environment()["torch"]["flush_denormal"] is True
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    assert changed == before | {"threads": threads + 1}
    assert describe_environment()["torch"] == before


def test_precision_of_products_has_one_name_where_torch_has_two() -> None:
    """torch says "none" at first and "ieee" after a call that changes nothing; both are full precision."""
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision
    names = ("matmul_precision", "cuda_matmul_precision")
    try:
        seen = []
        for precision in (None, "highest", "high"):
            if precision:
                torch.set_float32_matmul_precision(precision)
            seen.append(tuple(describe_torch(torch)[name] for name in names))
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.matmul.fp32_precision = before[1]
    assert seen == [("highest", "ieee"), ("highest", "ieee"), ("high", "tf32")]


def test_variables_are_a_chosen_few() -> None:
    chosen = {
        "OMP_NUM_THREADS": "4",
        "GOMP_CPU_AFFINITY": "0-3",
        "KMP_BLOCKTIME": "0",
        "MKL_NUM_THREADS": "2",
        "NVIDIA_TF32_OVERRIDE": "0",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "x",
        "LD_PRELOAD": "libjemalloc.so",
    }
    others = {"NVIDIA_API_KEY": "secret", "HOME": "/home/me", "TORCH_HOME": "/x", "CUDA_HOME": "/y", "MY_OMP_X": "1"}
    record = describe_environment(sources=Sources(variables=chosen | others, modules={}))
    assert record["variables"] == chosen


def test_nothing_readable_gives_nulls_and_no_error(tmp_path: Path) -> None:
    sources = Sources(root=tmp_path / "none", variables={}, version=fail, modules={"torch": SimpleNamespace()}, gpu=lambda device: None)
    record = describe_environment("cuda", sources)
    assert {name for name, value in record["packages"].items() if value is not None} == {"rapidetr"}
    assert set(record["torch"].values()) == {None}
    assert (record["gpu"], record["variables"], record["device"]) == ({}, {}, "cuda:0")
    assert record["processor"]["flags"] == []
    assert record["processor"]["quota_cores"] is None
    json.dumps(record)


def test_a_gpu_without_nvml_is_described_by_torch() -> None:
    card = SimpleNamespace(name="Card", total_memory=16 << 30)
    fake = SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda device: card))
    record = describe_environment("cuda:1", Sources(modules={"torch": fake}, gpu=lambda device: None))
    assert record["gpu"] == {"name": "Card", "memory_bytes": 16 << 30}


def test_describing_does_not_import_torch() -> None:
    code = "import sys; from rapidetr.runtime import lock; r = lock.describe_environment(); print(r['torch'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "None False\n"


def test_the_code_is_known_by_its_bytes(tmp_path: Path) -> None:
    package = tmp_path / "site" / "lib" / "rapidetr"
    files(package, {"a.py": "x = 1", "sub/b.py": "y = 2", "notes.txt": "a"})
    before = describe_code(package)
    (package / "notes.txt").write_text("b")
    assert describe_code(package) == before
    assert before["commit"] is None
    (package / "sub" / "b.py").write_text("y = 3\n")
    assert describe_code(package)["sha256"] != before["sha256"]


def test_a_checkout_tells_its_commit(tmp_path: Path) -> None:
    files(tmp_path / "src" / "rapidetr", {"a.py": "x = 1"})
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    try:
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
            subprocess.run([*git, *words], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    head = subprocess.run([*git, "log", "-1", "--format=%H"], check=True, capture_output=True, text=True).stdout.strip()
    assert describe_code(tmp_path / "src" / "rapidetr")["commit"] == head

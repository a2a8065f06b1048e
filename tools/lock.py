"""Write requirements.lock: every package that development and tests install, pinned, with the hashes of all its files.

torch stands there without a hash, since its CPU and CUDA builds differ. Run it with the project's environment:
    make lock
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pip._internal.models.index import PyPI
from pip._vendor.packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
TORCH = "2.13.0"
EXTRAS = "dev,test,train,eval,supervision,bench,loggers,onnx,openvino,serve,video,ray,docs"
HEAD = """# Made by tools/lock.py; do not edit. Installed by `make` (see the Makefile: torch first, the rest with --require-hashes).
"""


def resolve() -> dict[str, str]:
    """Newest versions that fit together, by pip's own resolver."""
    wanted = [f"{ROOT}[{EXTRAS}]", f"torch=={TORCH}"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-build-isolation",
        "--report",
        "-",
    ]
    report = json.loads(subprocess.run([*command, *wanted], check=True, capture_output=True, text=True).stdout)
    found = {canonicalize_name(i["metadata"]["name"]): i["metadata"]["version"] for i in report["install"]}
    return {name: version.split("+")[0] for name, version in sorted(found.items()) if name != "rapidetr"}


def hashes(name: str, version: str) -> list[str]:
    """sha256 of every file of one version, from the package index (its HTML form, which every index has)."""
    with urllib.request.urlopen(f"{PyPI.simple_url}/{name}/", timeout=60) as answer:
        page = answer.read().decode()
    files = re.findall(r"/([^/\"#]+)#sha256=([0-9a-f]{64})", page)
    return sorted({digest for filename, digest in files if version_of(filename) == version})


def version_of(filename: str) -> str | None:
    try:
        parse = parse_wheel_filename if filename.endswith(".whl") else parse_sdist_filename
        return str(parse(filename)[1])
    except ValueError:
        return None


def main() -> None:
    versions = resolve()
    hashed = {name: version for name, version in versions.items() if name != "torch"}
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(hashed, pool.map(hashes, hashed, hashed.values()), strict=True))
    lines = [HEAD, f"torch=={TORCH}\n"]
    for name, version in hashed.items():
        if not found[name]:
            raise SystemExit(f"{name} {version}: no file with a hash in the index; pin another version")
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in found[name])]) + "\n")
    (ROOT / "requirements.lock").write_text("".join(lines))
    print(f"{len(versions)} packages pinned")


if __name__ == "__main__":
    main()

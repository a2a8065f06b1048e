"""What people install: sdist and wheel are built, installed apart from the checkout, and run."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one sdist, and one wheel made from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root))
    return out


def run(*command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def test_files_in_the_archives(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert "rapidetr/py.typed" in names
    assert all(n.startswith(("rapidetr/", "rapidetr-")) for n in names)
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {n.split("/", 1)[1] for n in sdist.getnames() if "/" in n}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "src/rapidetr/__init__.py", "tests/conftest.py"} <= inside
    assert {"docs/index.md", "examples/demo.py", "tools/lock.py", "mkdocs.yml", "CONTRIBUTING.md"} <= inside  # what the Makefile uses


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_installed_package_runs(built: Path, kind: str, tmp_path: Path) -> None:
    """In a fresh environment that sees the same third-party packages, but not this checkout."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "third_party.pth").write_text(sysconfig.get_path("purelib"))
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
    run(str(python), "-m", "pip", "install", *quiet, "--force-reinstall", "--ignore-installed", str(next(built.glob(kind))))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RAPIDETR"))}
    where = run(str(python), "-c", "import rapidetr; print(rapidetr.__file__)", env=clean, cwd=tmp_path)
    assert where.strip().startswith(str(tmp_path))
    command = str(tmp_path / "env" / "bin" / "rapidetr")
    assert "nano" in run(command, "models", env=clean, cwd=tmp_path)
    code = (
        "import numpy, rapidetr; d = rapidetr.load('nano', weights='random', seed=0);"
        "print(len(d.predict(numpy.zeros((64, 48, 3), numpy.uint8), 0.0)[0]))"
    )
    assert int(run(str(python), "-c", code, env=clean, cwd=tmp_path)) > 0

"""The little world in which the code of the documentation runs: offline, with a rendered dataset and stand-ins for official weights.

What is not as a reader has it, and nothing else:
- every published name (nano, small, seg-nano, ...) is the bundled pico or seg-pico at 96 x 96 pixels, without network: the table of
  variants says so in this process, and files of the official names lie in the weights cache beside a stamp that calls them verified;
- training sees one epoch with one query group in batches of at most two, whatever the page asks for;
- the benchmark begins no call of a setting after half a second, and does not rest between settings; `choose` measures in this process
  and begins nothing after five seconds (its answer says what is open); the gate starts one fresh process of each side, not three.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import rapidetr
from rapidetr.checkpoints.file import Checkpoint, open_checkpoint, save_checkpoint, save_official
from rapidetr.checkpoints.weights import WEIGHTS, bundled_file, entry_for
from rapidetr.cli.main import main
from rapidetr.core.config import VARIANTS, ModelConfig
from rapidetr.demo.dataset import write_dataset
from rapidetr.demo.world import render_scene
from rapidetr.deployment.registry import Registry
from rapidetr.runtime.artifact import Manifest, write_artifact

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZE_HW = (96, 96)
EFFORT = {"seconds": 0.5, "warm_up_s": 0.05, "cool_down_s": 0.0, "forward_calls": 0}  # the most that a benchmark's plan may ask for
FOREIGN = ("RF_HOME", "ROBOFLOW_HOME", "RAPIDETR_MIRROR", "RAPIDETR_ACCEPT_LICENSE", "MLFLOW_TRACKING_URI", "WANDB_MODE")


def stand_in(name: str) -> Checkpoint:
    """The bundled model of the same task under another name, at 96 x 96."""
    own = "seg-pico" if name.startswith("seg-") else "pico"
    with bundled_file(entry_for(own)) as file:
        checkpoint = open_checkpoint(file)
    return replace(checkpoint, config=replace(checkpoint.config, name=name, size_hw=SIZE_HW))


def shrink(config: ModelConfig) -> ModelConfig:
    """The row of the table that stands in for `config`; the bundled models keep theirs."""
    if config.name in ("pico", "seg-pico"):
        return config
    return replace(VARIANTS["seg-pico" if config.segmentation else "pico"], name=config.name, size_hw=SIZE_HW)


def write_weights(home: Path, names: tuple[str, ...] = ("nano", "small", "medium", "seg-nano")) -> None:
    """The weights cache below `home`, each file with the stamp that the download code leaves beside what it has verified."""
    for name in names:
        entry, folder = WEIGHTS[name], home / "weights"
        file = save_checkpoint(stand_in(name), folder / f"{name}.safetensors").rename(folder / entry.filename)
        about = file.stat()
        file.with_name(f"{file.name}.ok").write_text(f"{entry.md5} {about.st_size} {about.st_mtime_ns} {file}\n", "utf-8")


def shorten(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Stand-ins and little effort, as this module's docstring lists them."""
    from rapidetr.bench.runner import Plan
    from rapidetr.choice import measure, search
    from rapidetr.deployment import gate
    from rapidetr.training.recipe import Recipe

    for variable in FOREIGN:
        patch.delenv(variable, raising=False)
    for variable, value in {"RAPIDETR_OFFLINE": "1", "RAPIDETR_HOME": home, "HOME": home, "OMP_NUM_THREADS": "1"}.items():
        patch.setenv(variable, str(value))
    for name, config in list(VARIANTS.items()):
        patch.setitem(VARIANTS, name, shrink(config))
    read, check, look = Recipe.from_dict.__func__, Plan.__post_init__, search.search  # type: ignore[attr-defined]

    def from_dict(cls: type[Recipe], record: dict[str, Any]) -> Recipe:
        asked = read(cls, record)
        return replace(asked, epochs=1, groups=1, batch_size=min(asked.batch_size, 2), accumulate=1, size_hw=SIZE_HW, multi_scale=False)

    def plan(self: Plan) -> None:
        check(self)
        for name, most in EFFORT.items():
            object.__setattr__(self, name, min(getattr(self, name), most))

    patch.setattr(Recipe, "from_dict", classmethod(from_dict))
    patch.setattr(Plan, "__post_init__", plan)
    patch.setattr(measure, "SCREEN", Plan(rounds=2))
    patch.setattr(measure.Trial, "measure", measure.Trial.measure_here)
    patch.setattr(search, "search", lambda *given, **named: look(*given, **{**named, "budget_s": 5.0}))
    for name, most in EFFORT.items():  # its plan was made before, and is the default of several functions
        patch.setitem(vars(gate.PLAN), name, most)
    patch.setattr(gate, "STARTS", 1)


def write_film(path: Path) -> None:
    """Six rendered scenes, five a second."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=5, width=SIZE_HW[1], height=SIZE_HW[0], pix_fmt="yuv420p")
        for seed in range(6):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(render_scene(seed, size_hw=SIZE_HW).pixels, format="rgb24")))
        film.mux(stream.encode())


def furnish(folder: Path) -> Path:
    """`folder`, with everything that the pages take for granted; call it after `shorten`, in that folder.

    data/ (COCO; train, valid and test), photos/, street.jpg, yard.png, mine.safetensors, new.safetensors, old.safetensors,
    checkpoint_best_total.pth (an official file), runs/mine (a run that has ended), registry/ (a baseline, which is current, and
    another one), images.parquet, traffic.mp4, and the examples/ of the checkout.
    """
    write_dataset(folder / "data", 4, 1, split={"train": 1.0, "valid": 0.5, "test": 0.5}, size_hw=SIZE_HW)
    names = ("street.jpg", "yard.png", "photos/a.jpg", "photos/b.jpg", "photos/c.png")
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(render_scene(seed, size_hw=(288, 288)).pixels).save(folder / name)
    for name in ("mine", "new", "old"):
        save_checkpoint(stand_in("nano"), folder / f"{name}.safetensors")
    save_official(stand_in("nano"), folder / "checkpoint_best_total.pth")
    assert main(["train", "data/", "--model", "nano", "--epochs", "50", "--out", "runs/mine", "--no-report", "--quiet"]) == 0
    write_film(folder / "traffic.mp4")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("node_modules"))
    pictures = {"image": [(folder / name).read_bytes() for name in names]}
    parquet.write_table(pyarrow.table(pictures), folder / "images.parquet")
    registry = Registry("registry")
    for queries in (50, 25):
        detector = rapidetr.load("mine.safetensors", device="cpu", queries=queries)
        manifest = Manifest.of(detector, source="mine.safetensors", parameters={"queries": queries})
        write_artifact(f"queries-{queries}", {"best.safetensors": "mine.safetensors"}, manifest)
        registry.add(f"queries-{queries}", baseline=True, why="furniture")
    return folder

"""What one run of `rapidetr predict` writes: a line for each picture, annotated pictures, JSON."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rapidetr.cli.console import Console
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, RapidetrError
from rapidetr.pixels.decode import ImageLimits, load_picture
from rapidetr.pixels.read import is_url

if TYPE_CHECKING:
    from rapidetr.runtime.detector import Detector

JPEG_SIDE = 65_500  # pixels; what the format can hold
NAME_BYTES = 200  # of a stem: of 255, with what is put around it while it is written
WIDEST_NAME = 48  # characters of a path in the lines for people


class Results:
    """Takes detections batch by batch and keeps only what the JSON needs; `folder` is None where no pictures are to be drawn."""

    def __init__(self, args: Namespace, console: Console, sources: Sequence[str], limits: ImageLimits) -> None:
        self.args, self.console, self.limits = args, console, limits
        self.folder = None if args.no_pictures else output_folder(args.out or "results", sources)
        taken = {Path(source).resolve() for source in sources if not is_url(source)}
        for file in (args.save_json, args.coco):
            if file and Path(file).is_dir():
                raise ConfigError(f"{file}: is a folder; expected the name of a file to write")
            if file and Path(file).resolve() in taken:
                raise ConfigError(f"{file}: is a picture that is to be predicted, or named twice; choose another file to write")
            taken |= {Path(file).resolve()} if file else set()
        self.width = min(max(map(len, sources)), WIDEST_NAME)
        self.held: dict[str | None, Any] = {}  # bytes of pictures that came from an address
        self.names: set[str] = set()
        self.images: list[dict[str, Any]] = []
        self.coco: list[dict[str, Any]] = []
        self.coco_images: list[dict[str, Any]] = []
        self.number = self.found = self.failed = 0

    def add(self, batch: Sequence[Detections]) -> None:
        good = sum(detections.error is None for detections in batch)
        for detections in batch:
            self.number += 1
            self.take(detections, sum(detections.times_ms.values()) / max(good, 1))  # the times are those of the whole batch

    def take(self, detections: Detections, ms: float) -> None:
        """One picture: draw it, say what was found, keep its record."""
        drawn = None
        if self.folder is not None and detections.error is None:
            try:
                drawn = self.draw(detections, self.folder)
            except RapidetrError as problem:  # the file was changed or removed after it had been looked at
                detections = replace(detections, error=str(problem))
            except OSError as problem:
                detections = replace(detections, error=f"{detections.source}: its annotated picture cannot be written: {problem}")
        if detections.error is None:
            self.found += len(detections)
            name = str(detections.source)
            name = name if len(name) <= WIDEST_NAME else "…" + name[1 - WIDEST_NAME :]
            size = f"{detections.image_hw[0]}x{detections.image_hw[1]}"
            self.console.say(f"{name:{self.width}}  {size:9}  {ms:7.1f} ms  {summary(detections)}")
        else:
            self.failed += 1
            self.console.error(detections.error)
        self.keep(detections, drawn)

    def draw(self, detections: Detections, folder: Path) -> str:
        """Path of the annotated picture."""
        picture = load_picture(self.held.pop(detections.source, detections.source), self.limits)
        path = folder / self.name(str(detections.source))
        image = detections.draw(picture.pixels)
        if max(image.size) > JPEG_SIDE:
            path = path.with_suffix(".png")
        if path.suffix == ".png":
            write(path, lambda part: image.save(part, "PNG"))
        else:
            write(path, lambda part: image.save(part, "JPEG", quality=92))
        return str(path)

    def name(self, source: str) -> str:
        """Stem of the source and .jpg (.png for PNG), numbered where this run has used the name."""
        plain = PurePosixPath(unquote(urlsplit(source).path)) if is_url(source) else Path(source)
        short = os.fsencode(plain.stem)[:NAME_BYTES]
        stem, suffix = short.decode(errors="ignore") or "picture", ".png" if plain.suffix.lower() == ".png" else ".jpg"
        name, number = stem + suffix, 1
        while name.casefold() in self.names:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self.names.add(name.casefold())
        return name

    def keep(self, detections: Detections, drawn: str | None) -> None:
        """The records that the JSON files will have."""
        if self.args.json or self.args.save_json:
            self.images.append({"image_id": self.number, "picture": drawn, **detections.to_dict(masks=self.args.masks)})
        if self.args.coco and detections.error is None:
            height, width = detections.image_hw
            self.coco += detections.to_coco(self.number)
            self.coco_images.append({"id": self.number, "file_name": detections.source, "width": width, "height": height})

    def close(self, detector: Detector) -> int:
        """Write the files, say the sum; the exit status."""
        document = {
            "model": detector.config.name,
            "license": detector.license,
            "threshold": self.args.threshold,
            "size_hw": list(detector.size_hw),
            "resize_filter": detector.preprocessing.predict_filter,
            "pictures": self.number - self.failed,
            "detections": self.found,
            "failed": self.failed,
            "images": self.images,
        }
        if self.args.save_json:
            write_json(Path(self.args.save_json), document)
        if self.args.coco:
            write_json(Path(self.args.coco), self.coco)
            write_json(Path(f"{self.args.coco}.images.json"), self.coco_images)
        where = "" if self.folder is None else f"; annotated pictures in {self.folder}{os.sep}"
        sums = count(self.number - self.failed, "picture"), count(self.found, "detection"), f"{self.failed} failed{where}"
        self.console.say(", ".join(sums))
        self.console.finish(document)
        return 0 if not self.failed else 1 if self.failed < self.number else 2


def output_folder(name: str, sources: Sequence[str]) -> Path:
    """The folder for annotated pictures; ConfigError where they could replace what is to be looked at."""
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; expected a folder for the annotated pictures")
    if folder.resolve() in {Path(source).resolve().parent for source in sources if not is_url(source)}:
        raise ConfigError(f"{folder}: holds pictures that are to be predicted; choose another --out, or --no-pictures")
    return folder


def summary(detections: Detections) -> str:
    """Such as '2 person, 1 car'."""
    found = Counter(name or "unnamed" for name in detections.class_names)
    return ", ".join(f"{count} {name}" for name, count in found.most_common()) or "nothing"


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def write_json(path: Path, document: Any) -> None:
    write(path, lambda part: part.write_text(json.dumps(document) + "\n", encoding="utf-8"))


def write(path: Path, save: Any) -> None:
    """See `write_atomically`."""
    from rapidetr.checkpoints.file import write_atomically  # loads torch, which --help does not need

    write_atomically(path, save)

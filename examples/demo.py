"""`make demo`: predict with the official Nano weights on a given picture, or on a rendered one.

python examples/demo.py [--out demo-out] [picture]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

import rapidetr
from rapidetr.core.errors import DownloadError
from rapidetr.demo import render_scene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", help="default: a rendered scene (COCO weights know only some of its things)")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    args = parser.parse_args()
    try:
        detector = rapidetr.load("nano")
    except DownloadError as problem:
        print(f"The demo needs the official Nano weights: {problem}")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.picture or args.out / "scene.png"
    if not args.picture:
        Image.fromarray(render_scene(0, size_hw=(480, 480)).pixels).save(picture)
    found = detector.predict(picture, threshold=0.4)[0]
    path = args.out / "detections.png"
    found.draw(picture).save(path)
    print(f"{found}\nannotated picture: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

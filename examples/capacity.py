"""How many machines a number of pictures a day needs, from the rate that was measured on one.

    rapidetr batch photos/ --model pico --out trial/ --json > trial.json
    python examples/capacity.py --from trial.json --images-per-day 1e9
    python examples/capacity.py --images-per-s 500 --images-per-day 1e9 --hours 24 --busy 0.7 --image-kb 200 --price-per-hour 2.5

machines = images_per_day / (images_per_s x 3600 x hours x busy), rounded up.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path


def capacity(
    images_per_s: float, images_per_day: float, *, hours: float = 24, busy: float = 0.7, image_kb: float = 200,
    result_kb: float = 0.5, price_per_hour: float = 0.0,
) -> dict[str, float]:  # fmt: skip
    """What a day needs. `images_per_s`: one machine, read to written; `busy`: the part of `hours` in which machines do work."""
    seconds = 3600 * hours
    machines = math.ceil(images_per_day / (images_per_s * seconds * busy))
    return {
        "images_per_s_needed": images_per_day / seconds,
        "images_per_s_of_one": images_per_s,
        "machines": machines,
        "machine_hours": machines * hours,
        "read_gbit_per_s": images_per_day * image_kb * 8e-6 / seconds,
        "read_gbit_per_s_of_one": images_per_s * image_kb * 8e-6,
        "results_gb_per_day": images_per_day * result_kb / 1e6,
        "price_per_day": machines * hours * price_per_hour,
        "price_per_million": machines * hours * price_per_hour / images_per_day * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rate = parser.add_mutually_exclusive_group(required=True)
    rate.add_argument("--images-per-s", type=float, help="of one machine")
    rate.add_argument("--from", dest="file", help="what `rapidetr batch --json` printed on one machine")
    parser.add_argument("--images-per-day", type=float, required=True)
    parser.add_argument("--hours", type=float, default=24, help="of the day in which the work may be done (default: 24)")
    parser.add_argument("--busy", type=float, default=0.7, help="part of it that is not starts, retries and reserve (default: 0.7)")
    parser.add_argument("--image-kb", type=float, default=200, help="of one picture (default: 200)")
    parser.add_argument("--result-kb", type=float, default=0.5, help="of its result (default: 0.5)")
    parser.add_argument("--price-per-hour", type=float, default=0, help="of one machine (default: 0)")
    args = vars(parser.parse_args())
    file, measured = args.pop("file"), args.pop("images_per_s")
    if file:
        measured = json.loads(Path(file).read_text().splitlines()[-1])["images_per_s"]
    print(json.dumps({name: round(value, 3) for name, value in capacity(measured, **args).items()}, indent=1))


if __name__ == "__main__":
    main()

"""What does the search of `rapidetr choose` miss, and what does it save? Every candidate measured in full, then searches among them.

    .venv/bin/python benchmarks/choose_grid.py --data DATA --split test --models pico,seg-pico,runs/mine --sizes 224,288 --queries 25,50

Each candidate takes every step of the search (a screening, a timing, AP of all pictures), each in a fresh process, as `choose` itself
measures. Then, for each service level of --levels (P95_MS:MIN_AP), the search runs on these records. Its answer must be that of ranking
all full measurements; its seconds are reported as a part of theirs, which are counted without a second start of a process.
What was measured is kept in PART and not measured again, so that it may be stopped. --allow-noise for a trial, no evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import write

from rapidetr.choice.measure import SCREEN, Trial
from rapidetr.choice.rank import Answer, rank
from rapidetr.choice.records import Candidate, Measured, ServiceLevel
from rapidetr.choice.search import STEPS, AnyGraph, FixedGraph, Offer, grid, search
from rapidetr.data.read import read_dataset
from rapidetr.runtime.load import load
from rapidetr.runtime.places import find_artifact

Steps = dict[str, Measured]  # by name of the step


def candidates(args: argparse.Namespace) -> list[Candidate]:
    found = []
    sizes = [(int(side), int(side)) for side in args.sizes.split(",")]
    queries = [int(count) for count in args.queries.split(",")]
    for model in args.models.split(","):
        detector = load(model, device="cpu")
        config, engine = detector.config, cast(Any, detector.engine)
        free = engine.name == "torch" and not find_artifact(model)
        values = engine.size_hw, engine.decoder_layers or config.decoder_layers, engine.queries or config.queries
        offer: Offer = AnyGraph("torch") if free else FixedGraph(engine.name, (engine.precision,), values)
        found += grid({model: config}, [offer], sizes=sizes, decoder_layers=None, queries=queries)
    return found


def measure(args: argparse.Namespace, part: Path) -> dict[Candidate, Steps]:
    """Every step of every candidate; a line of `part` for each candidate."""
    trial = Trial(
        args.data, args.split, threads=args.threads, device="cpu", screen_pictures=args.screen_pictures, allow_noise=args.allow_noise
    )
    known: dict[Candidate, Steps] = {}
    for line in part.read_text().splitlines() if part.exists() else []:
        steps = {step: Measured.from_dict(record) for step, record in json.loads(line).items()}
        known[steps["time"].candidate] = steps
    wanted = candidates(args)
    for n, candidate in enumerate(wanted):
        if candidate not in known:
            known[candidate] = {step: trial.measure(candidate, step) for step in STEPS}
            with part.open("a") as file:
                file.write(json.dumps({step: m.to_dict() for step, m in known[candidate].items()}) + "\n")
        m = known[candidate]["time"]
        print(f"{n + 1}/{len(wanted)} {candidate}: p95 {m.p95_ms} ms, AP {known[candidate]['score'].ap} {m.problem or ''}", file=sys.stderr)
    return {candidate: known[candidate] for candidate in wanted}


def in_full(steps: Steps, pictures: int) -> Measured:
    """Timing and AP as one measurement; its seconds are those of the timing and of predicting all pictures, in one process."""
    timed, scored = steps["time"], steps["score"]
    seconds = timed.seconds + pictures * (timed.p50_ms or 0.0) / 1000
    return replace(timed, effort="full", ap=scored.ap, seconds=seconds, problem=timed.problem or scored.problem)


def searched(records: dict[Candidate, Steps], level: ServiceLevel) -> tuple[Answer, float, int]:
    """(answer, seconds, measurements) of a search that looks its measurements up."""
    spent: list[float] = []

    def look_up(candidate: Candidate, step: str) -> Measured:
        spent.append(records[candidate][step].seconds)
        return records[candidate][step]

    return search(list(records), level, look_up), sum(spent), len(spent)


def compare(records: dict[Candidate, Steps], level: ServiceLevel, pictures: int) -> dict[str, Any]:
    everything = [in_full(steps, pictures) for steps in records.values()]
    best = rank(everything, level)
    answer, seconds, count = searched(records, level)

    def name(m: Measured | None) -> str | None:
        return m and str(m.candidate)

    return {
        "level": str(level),
        "smallest": name(answer.smallest),
        "most_accurate": name(answer.most_accurate),
        "same_answer": [name(answer.smallest), name(answer.most_accurate)] == [name(best.smallest), name(best.most_accurate)],
        "measurements": count,
        "part_of_exhaustive_time": round(seconds / sum(m.seconds for m in everything), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--models", required=True, metavar="M,M", help="as `rapidetr choose` takes them")
    parser.add_argument("--sizes", required=True, metavar="S,S")
    parser.add_argument("--queries", required=True, metavar="N,N")
    parser.add_argument("--levels", required=True, metavar="P95_MS:MIN_AP,...", help="service levels")
    parser.add_argument("--screen-pictures", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allow-noise", action="store_true")
    parser.add_argument("--part", type=Path, default=Path("choose_grid.jsonl"), help="measurements so far (default: %(default)s)")
    parser.add_argument("--out")
    args = parser.parse_args()
    levels = [ServiceLevel(*map(float, pair.split(":"))) for pair in args.levels.split(",")]
    pictures = len(read_dataset(args.data, args.split))
    records = measure(args, args.part)
    record = {
        "threads": args.threads,
        "pictures": pictures,
        "screen_pictures": args.screen_pictures,
        "screen_rounds": SCREEN.rounds,
        "levels": [compare(records, level, pictures) for level in levels],
        "measured": [{step: m.to_dict() for step, m in steps.items()} for steps in records.values()],
    }
    write("choose_grid", record, args.out)


if __name__ == "__main__":
    main()

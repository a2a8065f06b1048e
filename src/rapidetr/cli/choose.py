"""`rapidetr choose`: the smallest configuration that keeps a service level, with the reasons."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rapidetr.choice.rank import Answer, rank
from rapidetr.choice.records import Candidate, Measured, ServiceLevel
from rapidetr.cli.console import Console
from rapidetr.cli.options import at_least, several, size_hw
from rapidetr.core.errors import ConfigError

if TYPE_CHECKING:
    from rapidetr.choice.measure import Trial
    from rapidetr.choice.search import Offer
    from rapidetr.core.config import ModelConfig

EXAMPLES = """\
  rapidetr choose --data data/ --p95-ms 40 --min-ap 0.40 --models nano,small,medium --decoder-layers all --out choice/
  rapidetr choose --data data/ --p95-ms 40 --models runs/mine --sizes 384,512 --queries 100,300 --budget-minutes 30 --out choice/
  rapidetr choose --reports nano/report.json small/report.json --p95-ms 40 --min-ap 0.40 --memory-mb 800"""


def layers(text: str) -> list[int] | None:
    """Argparse type: numbers separated by commas; None for 'all'."""
    return None if text == "all" else several(at_least(1))(text)


def engine(text: str) -> tuple[str, str]:
    """Argparse type: ('torch', 'bfloat16') of 'torch:bfloat16'."""
    name, _, precision = text.partition(":")
    if name != "torch":
        raise ArgumentTypeError(f"expected torch, or torch:PRECISION, got {text!r}")
    return name, precision or "float32"


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("service level")
    group.add_argument("--p95-ms", type=float, required=True, metavar="MS", help="95 of 100 single pictures take at most this long")
    group.add_argument("--min-ap", type=float, metavar="AP", help="at least this AP, 0 to 1")
    group.add_argument("--memory-mb", type=float, metavar="MB", help="at most this peak of the process (CUDA: of the device)")
    group.add_argument("--ap-of", choices=("boxes", "masks"), default="boxes", help="which AP (default: boxes)")
    group = parser.add_argument_group("recorded")
    group.add_argument("--reports", nargs="+", metavar="JSON", help="rank these reports of `rapidetr bench`; nothing is measured")
    group = parser.add_argument_group("measured now: every combination is a candidate")
    group.add_argument("--data", metavar="DATA", help="a dataset: COCO, YOLO or Pascal VOC")
    group.add_argument("--split", default="valid", help="train, valid or test (default: valid)")
    group.add_argument("--models", type=several(str), metavar="M,M", help="names, checkpoint files, run folders, artifacts or .onnx files")
    group.add_argument("--sizes", type=several(size_hw), default=[], metavar="S,S", help="input sizes (default: the model's own)")
    group.add_argument("--decoder-layers", type=layers, default=[], metavar="N,N|all", help="(default: all that the model has)")
    group.add_argument("--queries", type=several(at_least(1)), default=[], metavar="N,N", help="(default: all that the model has)")
    group.add_argument("--engines", type=several(engine), default=[("torch", "float32")], metavar="E,E", help="torch, torch:bfloat16")
    group.add_argument("--budget-minutes", type=float, metavar="M", help="begin no measurement later; the answer says what is open")
    group.add_argument("--rounds", type=at_least(20), default=40, metavar="N", help="of 3 calls each, for p95 (default: 40)")
    group.add_argument("--screen-pictures", type=at_least(1), default=200, metavar="N", help="scored at first (default: 200)")
    group.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")
    parser.add_argument("--allow-noise", action="store_true", help="use runs that sensors call unusable: a trial, no evidence")


def run(args: Namespace, console: Console) -> int:
    """0 where something keeps the level, 1 where nothing does."""
    level = ServiceLevel(args.p95_ms, args.min_ap, args.memory_mb)
    if bool(args.reports) == bool(args.data and args.models):
        raise ConfigError("expected --data and --models, or --reports; one of the two")
    if args.out:
        from rapidetr.draw.charts import load_library

        load_library()  # a missing one should not be found after hours of measuring
    answer = from_reports(args, level) if args.reports else measured_now(args, level, console)
    say(answer, console)
    if args.out:
        write(answer, Path(args.out), console)
    console.finish({"kept": answer.smallest is not None, "service_level": answer.promise.to_dict(), "answer": answer.to_dict()})
    return 0 if answer.smallest else 1


def from_reports(args: Namespace, level: ServiceLevel) -> Answer:
    from rapidetr.choice.reports import measured_in, note_on_machines
    from rapidetr.core.reports import BenchReport

    reports = [BenchReport.read(path) for path in args.reports]
    measured = [
        one
        for path, report in zip(args.reports, reports, strict=True)
        for one in measured_in(report, path, ap_of=args.ap_of, allow_noise=args.allow_noise)
    ]
    return rank(measured, level, environment=reports[0].environment, notes=[*note_on_machines(reports), *noise_note(args)])


def measured_now(args: Namespace, level: ServiceLevel, console: Console) -> Answer:
    """Search over the grid, with the journal in --out."""
    from rapidetr.choice.search import Journal, grid, search
    from rapidetr.runtime.environment import describe_environment
    from rapidetr.runtime.lock import sha256_of, weights_file

    trial = trial_of(args)
    extents: dict[str, Any] = {"sizes": args.sizes, "decoder_layers": args.decoder_layers, "queries": args.queries}
    found = [grid({model: config}, offers, **extents) for model in args.models for config, offers in [what_is(model, args)]]
    candidates = sorted((c for part in found for c in part), key=lambda c: (c.extent, c.family))
    hashes = {model: sha256_of(weights_file(model)) for model in args.models}
    environment = describe_environment(trial.device)
    settings = {**trial.settings(), "processor": environment["processor"], "gpu": environment["gpu"]}
    journal = Journal(Path(args.out) / "journal.jsonl", settings, hashes) if args.out else None

    def measure(candidate: Candidate, step: str) -> Measured:
        return replace(trial.measure(candidate, step), artifact_sha256=hashes[candidate.model])

    with tqdm(total=len(candidates), unit="candidate", leave=False, disable=args.quiet or None) as bar:

        def progress(candidate: Candidate, step: str, answer: Answer) -> None:
            bar.update(len(candidates) - len(answer.of("open")) - bar.n)
            bar.set_postfix_str(f"{step} {candidate}")

        minutes, notes = args.budget_minutes, noise_note(args)
        budget_s = None if minutes is None else 60 * minutes
        return search(
            candidates, level, measure, journal=journal, budget_s=budget_s, progress=progress, environment=environment, notes=notes
        )


def trial_of(args: Namespace) -> Trial:
    from rapidetr.choice.measure import Trial
    from rapidetr.data.read import read_dataset
    from rapidetr.runtime.load import pick_device
    from rapidetr.runtime.lock import sha256_of

    read_dataset(args.data, args.split)  # a wrong path should not wait for anything
    return Trial(
        args.data,
        args.split,
        sha256_of(Path(args.data)),
        device=pick_device(args.device),
        threads=args.threads,
        accept_license=args.accept_license,
        ap_of=args.ap_of,
        allow_noise=args.allow_noise,
        screen_pictures=args.screen_pictures,
        rounds=args.rounds,
        seconds=max(60.0, 0.006 * args.rounds * args.p95_ms),  # time enough for what is not twice as slow as the limit
    )


def what_is(model: str, args: Namespace) -> tuple[ModelConfig, list[Offer]]:
    """What the network is, and what it runs on: --engines, or what an artifact or exported file was made for."""
    from rapidetr.choice.search import AnyGraph, FixedGraph
    from rapidetr.core.config import variant
    from rapidetr.runtime.places import find_artifact

    free: list[Offer] = [AnyGraph(name, (precision,)) for name, precision in args.engines]
    if not Path(model).exists() and not find_artifact(model):
        return variant(model), free
    from rapidetr.runtime.load import load

    detector = load(model, device="cpu", accept_license=args.accept_license)
    engine: Any = detector.engine
    if not find_artifact(model) and engine.name == "torch":
        return detector.config, free
    values = (engine.size_hw, engine.decoder_layers or detector.config.decoder_layers, engine.queries or detector.config.queries)
    return detector.config, [FixedGraph(engine.name, (engine.precision,), values)]


def noise_note(args: Namespace) -> list[str]:
    return ["--allow-noise: runs on a machine that was not quiet were used; measure again before you promise anything"] * args.allow_noise


def say(answer: Answer, console: Console) -> None:
    """The table for people, then what follows from it."""
    console.say(f"{answer.level}")
    console.table(*table(answer))
    for line in (*answer.advice, *(f"note: {note}" for note in answer.notes)):
        console.say(line)
    for title, winner in (("smallest", answer.smallest), ("most accurate", answer.most_accurate)):
        console.say(f"{title}: {'nothing keeps the service level' if winner is None else winner.candidate}")


def table(answer: Answer) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    heads = ("candidate", "GMAC", "p50 ms", "p95 ms", "interval", "AP", "MB", "verdict", "why")
    rows: list[tuple[str, ...]] = []
    for row in answer.rows:
        m = row.measured
        low, high = m.p95_interval_ms or (None, None)
        reach = "-" if low is None else f"{low:.1f}-{'' if high is None else f'{high:.1f}'}"
        ap = "-" if m.ap is None else f"{m.ap:.3f}" + (f"±{m.ap_margin:.3f}" if m.ap_margin else "")
        figures = (_number(m.gmacs, 2), _number(m.p50_ms, 1), _number(m.p95_ms, 1), reach, ap, _number(m.memory_mb, 0))
        rows.append((str(m.candidate), *figures, row.verdict, row.reason))
    return heads, rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write(answer: Answer, folder: Path, console: Console) -> None:
    """answer.json, service_level.json, report.html and, where something has p95 and AP, pareto.png."""
    from rapidetr.cli.results import write as write_file
    from rapidetr.draw.charts import to_png, to_svg
    from rapidetr.draw.page import Section, render_page

    chart = draw(answer)
    text = "\n\n".join([str(answer.level), *answer.advice, *answer.notes])
    sections = [
        Section("Answer", text, table=table(answer)),
        Section(
            "Accuracy against latency",
            "Fully measured candidates; steps: what nothing beats in both.",
            figures=[to_svg(chart)] if chart else [],
        ),
    ]
    files: dict[str, str | bytes] = {
        "answer.json": json.dumps(answer.to_dict(), indent=1) + "\n",
        "service_level.json": json.dumps(answer.promise.to_dict(), indent=1) + "\n",
        "report.html": render_page("Choice by service level", sections, record=answer.to_dict()),
    }
    if chart:
        files["pareto.png"] = to_png(chart)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content.encode("utf-8") if isinstance(content, str) else content
        write_file(folder / name, lambda part, raw=raw: part.write_bytes(raw))
        console.say(f"wrote {folder / name}")


def draw(answer: Answer) -> Any:
    """p95 and AP of what was measured in full, by verdict; None where nothing was."""
    from rapidetr.draw.charts import scatter

    full = {row.measured.candidate: row for row in answer.rows if row.measured.effort == "full" and row.measured.ap is not None}
    full = {c: row for c, row in full.items() if row.measured.p95_ms is not None}
    if not full:
        return None
    groups = {verdict: [row.measured for row in full.values() if row.verdict == verdict] for verdict in ("kept", "refused")}
    groups = {verdict: group for verdict, group in groups.items() if group}
    points = {verdict: ([m.p95_ms or 0.0 for m in group], [m.ap or 0.0 for m in group]) for verdict, group in groups.items()}
    on_front = set(answer.pareto)
    labels = {
        verdict: [str(m.candidate).split(" queries")[0] if m.candidate in on_front else "" for m in group]
        for verdict, group in groups.items()
    }
    front = [full[c].measured for c in answer.pareto]
    steps = ([m.p95_ms or 0.0 for m in front], [m.ap or 0.0 for m in front])
    return scatter(
        points, title="Accuracy against latency", x="p95 ms of one picture", y="AP", labels=labels, front=steps if front else None
    )

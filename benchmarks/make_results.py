"""Write benchmarks/RESULTS.md, and the speed section of the README, from the JSON files beside this script.

.venv/bin/python benchmarks/make_results.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapidetr.choice.records import Candidate

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
HEAD = """# Results

Made by make_results.py from the JSON files in this folder; each section names its file, script, hardware and date. Ratios come from
interleaved rounds in one run; machines are shared and noisy, so ratios hold better than milliseconds.
"""


def main() -> None:
    records = [(path, json.loads(path.read_text())) for path in sorted(HERE.glob("*_*.json"))]
    known = [(path, r) for path, r in records if r.get("what") in WRITERS]
    sections = [f"## {TITLES[r['what']]}\n\n{where(path, r)}\n\n{WRITERS[r['what']](r)}\n" for path, r in known]
    (HERE / "RESULTS.md").write_text("\n".join([HEAD, *sections]))
    newest = {path.stem[: -len("_2026-01-01")]: (path, r) for path, r in known}  # of each script on each kind of hardware
    front = {what: [(path, r) for path, r in newest.values() if r["what"] == what] for what in FRONT}
    shown = [table([r for _, r in front[what]]) for what, table in FRONT.items()]
    sources = [f"- {where(path, r, 'benchmarks/')}" for what in FRONT for path, r in front[what]]
    shown.append(
        "\n".join(
            ["All figures, with their p95 and memory, are in [benchmarks/RESULTS.md](benchmarks/RESULTS.md); these are from:\n", *sources]
        )
    )
    marks = r"(<!-- results:begin .*?-->\n).*?(<!-- results:end -->)"
    README.write_text(re.sub(marks, lambda m: m[1] + "\n" + "\n\n".join(shown) + "\n\n" + m[2], README.read_text(), flags=re.S))


def where(path: Path, r: dict[str, Any], folder: str = "") -> str:
    machine = r["hardware"]
    flags = f" ({', '.join(machine['flags'])})" if machine.get("flags") else ""
    file = f"[{path.name}]({folder}{path.name})"
    return f"{machine['cpu']}{flags}, {machine['cores']} cores, {r['date']}, commit {r['commit'][:7]}; {file}, {r['what']}.py"


def predict(r: dict[str, Any]) -> str:
    rows = [
        f"End to end from a {r['input']} picture to detections, batch {r['batch']}, {r['threads']} threads, {r['precision']}, "
        "eager torch on both sides:\n",
        "| model | ours p50 / p95 ms | official p50 / p95 ms | times as fast p50 / p95 | peak memory MB, ours / official |",
        "|---|---|---|---|---|",
    ]
    for name, m in r["models"].items():
        sides = (m["ms"]["ours"], m["ms"]["official"], m["times_as_fast"])
        times = " | ".join(f"{t['p50']} / {t['p95']}" for t in sides)
        memory = " / ".join(f"{m['facts'][side]['peak_mb']:.0f}" for side in ("ours", "official"))
        rows.append(f"| {name} | {times} | {memory} |")
    lines = next(iter(r["models"].values()))["facts"]
    rows.append(f"\nLines of code loaded by one predict: {lines['ours']['lines']} of ours, {lines['official']['lines']} official.")
    return "\n".join(rows)


def startup(r: dict[str, Any]) -> str:
    rows = ["| command | p50 s | p95 s |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {t['p50']} | {t['p95']} |" for name, t in r["seconds"].items())])


def evaluation(r: dict[str, Any]) -> str:
    return (
        "```json\n"
        + json.dumps({k: v for k, v in r.items() if k not in ("hardware", "what", "date", "commit", "python")}, indent=1)
        + "\n```"
    )


def training(r: dict[str, Any]) -> str:
    rows = [
        f"One optimizer step of {r['model']} at {'x'.join(map(str, r['size_hw']))}, {r['boxes_per_image']} boxes an image, "
        f"{r['threads']} threads, interleaved; ratios to the official step in bfloat16, and in float32:\n",
        "| batch | side | p50 / p95 ms (steps) | peak memory MB | time, to bfloat16 / float32 | memory, to bfloat16 / float32 |",
        "|---|---|---|---|---|---|",
    ]
    for batch, sides in r["batches"].items():
        for name, m in sides.items():
            ratios = " | ".join(compare_steps(m, sides, value) for value in (lambda side: side["ms"]["p50"], lambda side: side["peak_mb"]))
            rows.append(
                f"| {batch} | {name} | {m['ms']['p50']:.0f} / {m['ms']['p95']:.0f} ({m['ms']['n']}) | {m['peak_mb']:.0f} | {ratios} |"
            )
    rows.append("\nMatcher and losses alone, forward and backward, batch 2, boxes in the first image:\n")
    rows += ["| boxes | side | p50 ms | peak MB |", "|---|---|---|---|"]
    for side, by_boxes in r["many_boxes"].items():
        rows += [f"| {boxes} | {side} | {found['ms']['p50']:.0f} | {found['peak_mb']} |" for boxes, found in by_boxes.items()]
    return "\n".join(rows)


def compare_steps(one: dict[str, Any], sides: dict[str, Any], value: Callable[[dict[str, Any]], float]) -> str:
    """To the official step in bfloat16 / in float32; - where that was not measured."""
    others = (sides.get(f"official {precision}") for precision in ("bfloat16", "float32"))
    return " / ".join(f"{value(one) / value(other):.2f}" if other else "-" for other in others)


def loader(r: dict[str, Any]) -> str:
    rows = [f"{r['pictures']}, {r['augment']} augmentation, batches of {r['batch']} at {r['size_hw'][0]}x{r['size_hw'][1]}:\n"]
    rows += ["| workers | images a second, p50 | times what training takes |", "|---|---|---|"]
    for workers, rate in r["images_per_s_by_workers"].items():
        rows.append(f"| {workers} | {rate['p50']} | {r['training'].get('loader_times_as_fast', {}).get(workers, '')} |")
    if r["training"]:
        rows.append(f"\nTraining takes {r['training']['images_per_s']} images a second on {r['training']['threads']} threads.")
    return "\n".join(rows)


def parity(r: dict[str, Any]) -> str:
    rows = [(k.replace("_", " "), v) for k, v in {"threshold": r["threshold"], **r["summary"]}.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def harness(r: dict[str, Any]) -> str:
    rows = [
        f"The harness of `rapidetr bench` around both, {r['pictures']} photos, {r['threads']} threads; ratios with 95 % intervals:\n",
        "| model | percentile | ours ms | official ms | ratio (interval) | verdict | noisy blocks, ours / official |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in r["models"].items():
        found = m["comparison"]
        noisy = " / ".join(str(len(found["unusable_blocks"][side])) for side in ("ours", "official"))
        for p in ("p50", "p95"):
            c = found[p]
            ratio = f"{c['ratio']:.2f} ({'-'.join(f'{v:.2f}' for v in c['interval'])})"
            rows.append(f"| {name} | {p} | {c['ours_ms']} | {c['official_ms']} | {ratio} | {c['verdict']} | {noisy} |")
    return "\n".join(rows)


def self_check(r: dict[str, Any]) -> str:
    rows = [f"The benchmark's own checks with real sleeps of 20 ms and more; percentiles within {r['within']:.0%} of the truth:\n"]
    for name, found in r["checks"].items():
        told = json.dumps({k: v for k, v in found.items() if k not in ("ok", "noise")})
        rows.append(f"- {name.removeprefix('check_')}: {'kept' if found['ok'] else 'not kept'}, `{told}`")
    return "\n".join(rows)


def chosen(r: dict[str, Any]) -> str:
    rows = [
        f"{len(r['measured'])} candidates of `rapidetr choose`, every one measured in full, then searched; {r['pictures']} pictures, "
        f"{r['threads']} threads:\n",
        "| service level | smallest | most accurate | same answer as measuring everything | part of its time |",
        "|---|---|---|---|---|",
    ]
    for c in r["levels"]:
        same = "yes" if c["same_answer"] else "no"
        rows.append(f"| {c['level']} | {c['smallest']} | {c['most_accurate']} | {same} | {c['part_of_exhaustive_time']:.2f} |")
    rows += ["\n| candidate | GMAC | p50 ms | p95 ms (interval) | AP | MB |", "|---|---|---|---|---|---|"]
    for steps in r["measured"]:
        m = steps["time"]
        name = Candidate.from_dict(m["candidate"])
        p95 = "-" if m["p95_ms"] is None else "{:.1f} ({:.1f}-{:.1f})".format(m["p95_ms"], *m["p95_interval_ms"])
        rows.append(f"| {name} | {m['gmacs']:.2f} | {m['p50_ms']:.1f} | {p95} | {steps['score']['ap']:.3f} | {m['memory_mb']:.0f} |")
    return "\n".join(rows)


def optimized(r: dict[str, Any]) -> str:
    rows = [
        f"From a {r['input']}, batch {r['batch']}, {r['threads']} threads; official best is `inference` with {r['official_best']}. "
        "Where three figures stand, they are ours, official, official best. Two streams are two processes of one thread.\n",
        "| model | ours | p50 / p95 ms | times as fast, p50 | start to first detections s | two streams, pictures a second |",
        "|---|---|---|---|---|---|",
    ]
    sides = ("ours", "official", "official best")
    keys = ("cold_start_s", "two_streams_images_per_second")
    for name, m in r["models"].items():
        facts = m["facts"]["ours"]
        times = ", ".join(f"{m['ms'][side]['p50']:.0f} / {m['ms'][side]['p95']:.0f}" for side in sides)
        fast = ", ".join(f"{m['times_as_fast']['p50'][side]:.2f}" for side in sides[1:])
        starts, rates = (", ".join(str(m[key].get(side, "-")) for side in sides) for key in keys)
        rows.append(f"| {name} | {facts['engine']} {facts['precision']}, {facts['filter']} | {times} | {fast} | {starts} | {rates} |")
    return "\n".join(rows)


def gate(r: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {c['expected']} | {', '.join(c['refused']) or 'nothing'} | {'yes' if c['ok'] else '**no**'} |"
        for name, c in r["checks"].items()
    ]
    about = (
        f"An engine that sleeps {r['baseline_ms']:g} ms against candidates that sleep {r['step_ms']:g} ms more or less, or answer wrongly."
    )
    return "\n".join([about, "", "| candidate | expected | the gate refuses | as it should |", "|---|---|---|---|", *rows])


def int8(r: dict[str, Any]) -> str:
    rows = [
        f"{r['data']}: {r['calibration_pictures']} pictures to calibrate with, {r['scored_pictures']} of {r['split']} scored; OpenVINO, "
        f"batch 1, {r['threads']} threads. Worst class: the largest loss of AP of any class against float32.\n",
        "| model | in int8 | AP boxes | worst class | AP masks | worst class | p50 / p95 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, scopes in r["models"].items():
        for scope, m in scopes.items():
            cells = []
            for kind in ("boxes", "masks"):
                plain = scopes["float32"].get(kind)
                lost = plain and max(a - b for a, b in zip(plain["per_class"], m[kind]["per_class"], strict=True))
                cells += [f"{m[kind]['AP']:.3f}", f"{lost:.3f}"] if plain else ["-", "-"]
            name = {"float32": "nothing", "bfloat16": "nothing, the rest bf16"}.get(scope, scope)
            rows.append(f"| {model} | {name} | {' | '.join(cells)} | {m['ms']['p50']} / {m['ms']['p95']} |")
    return "\n".join(rows)


def roboflow(r: dict[str, Any]) -> str:
    rows = [
        "| package | classes | detections, ours / client | largest difference: score | box px | mask, part of pixels |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in r["cases"].items():
        d = case["largest_difference"]
        counts = f"{case['detections']} / {case['client_detections']}"
        rows.append(f"| {name} | {case['classes']} | {counts} | {d['score']} | {d['box_px']} | {d.get('mask_part', '-')} |")
    return "\n".join([*rows, "\nBoxes of the client are whole pixels."])


def serving(r: dict[str, Any]) -> str:
    asked, alone, soak = r["asked"], r["unloaded"], r["soak_at_0.7"]
    rows = [
        f"`rapidetr serve {' '.join([asked['model'], asked['serve']]).strip()}`, client on the same cores, open loop with Poisson "
        f"arrivals where nothing else is said, {asked['seconds']:g} s each. Closed-loop capacity {r['capacity_per_s']} pictures a second "
        f"({asked['clients']} clients); without load p50 / p95 {alone['p50_ms']} / {alone['p95_ms']} ms.\n",
        "| part of capacity | a second | sent | shed with 503 | p50 / p95 / p99 ms of those answered | as fast as before after s |",
        "|---|---|---|---|---|---|",
    ]
    for factor in ("0.3", "0.7", "0.7_even", "3"):
        m = r[f"at_{factor}"]
        times = " / ".join(str(m.get(f"p{q}_ms", "-")) for q in (50, 95, 99))
        name = factor.replace("_even", ", evenly spaced")
        rows.append(f"| {name} | {m['rate']} | {m['sent']} | {m['shed']:.1%} | {times} | {m['recovery_s']} |")
    answered = ", ".join(f"{n} with {status}" for status, n in soak["statuses"].items())
    memory = f"{soak['parts'][0]['rss_mb']} to {soak['parts'][-1]['rss_mb']} MB from its first tenth to its end"
    times = " and ".join(f"{times} ({kind} arrivals)" for kind, times in r["p95_at_0.7_over_unloaded_p50"].items())
    rows.append(f"\np95 at 0.7 is {times} times the p50 without load. Soak of {soak['seconds']:g} s at 0.7:")
    rows.append(f"{answered}; memory of the server {memory}.\n")
    return "\n".join([*rows, promises(r["kept"])])


def promises(kept: dict[str, bool]) -> str:
    return "Promises: " + ", ".join(f"{name.replace('_', ' ')} {'kept' if held else '**not kept**'}" for name, held in kept.items()) + "."


def malformed(r: dict[str, Any]) -> str:
    asked, statuses = r["asked"], sorted(r["statuses"])
    first, *_, last = r["after"].items()
    rows = [
        f"{r['requests']} requests drawn from /openapi.json to `rapidetr serve {asked['model']} {asked['serve']}`, answers by kind:\n",
        f"| kind | {' | '.join(statuses)} | slowest s |",
        "|---" * (len(statuses) + 2) + "|",
    ]
    for kind, found in sorted(r["by_kind"].items()):
        rows.append(f"| {kind} | {' | '.join(str(found.get(s, 0)) for s in statuses)} | {r['slowest_s_and_number'][kind][0]} |")
    memory, files = (f"{first[1][name]} to {last[1][name]}" for name in ("rss_mb", "open_files"))
    rows.append(f"\nFrom request {first[0]} to {last[0]}: memory {memory} MB (flat: at most {r['flat_mb']} more), open files {files}.\n")
    return "\n".join([*rows, promises(r["kept"])])


def batches(r: dict[str, Any]) -> str:
    rows = [
        f"{r['images']} rendered scenes in shards of {r['shard_size']}, {r['model']}, {r['processes']} processes of one thread, "
        f"{r['rounds']} rounds in turns, medians:\n",
        "| pictures a second | plain loop | `rapidetr batch` on Ray | Ray to loop |",
        "|---|---|---|---|",
    ]
    names = {"steady": "when all processes work", "whole": "with Ray's start and loading"}
    median = r["median"]
    rows += [f"| {told} | {median['loop'][k]:.2f} | {median['ray'][k]:.2f} | {r['ray_to_loop'][k]:.3f} |" for k, told in names.items()]
    return "\n".join(rows)


TITLES = {
    "serve_load": "Serving under load",
    "serve_malformed": "Malformed requests",
    "batch_vs_loop": "Large batches on Ray against a plain loop",
    "roboflow_client": "Packages in Roboflow's client",
    "gate_self_check": "The gate checks itself",
    "int8_scope": "What bears int8",
    "predict_vs_official": "predict against the official package",
    "startup": "Start-up",
    "evaluate_vs_pycocotools": "Evaluation against pycocotools",
    "parity_vs_official": "Same detections as the official package on real photos",
    "train_vs_official": "Training steps against the official package",
    "loader_throughput": "Loader",
    "bench_vs_official": "The benchmark's own harness around the official package",
    "bench_self_check": "The benchmark checks itself",
    "choose_grid": "The choice by service level",
    "optimized_vs_official": "Optimized artifacts against the official package",
}
WRITERS = {
    "predict_vs_official": predict, "startup": startup, "evaluate_vs_pycocotools": evaluation, "parity_vs_official": parity,
    "train_vs_official": training, "loader_throughput": loader, "bench_vs_official": harness,
    "roboflow_client": roboflow, "int8_scope": int8, "serve_load": serving, "serve_malformed": malformed, "batch_vs_loop": batches,
    "bench_self_check": self_check, "gate_self_check": gate, "choose_grid": chosen, "optimized_vs_official": optimized,
}  # fmt: skip


def units(r: dict[str, Any]) -> str:
    """What the processor multiplies with, for people."""
    flags = set(r["hardware"].get("flags", ()))
    return "AVX-512, bf16, VNNI" if "avx512_bf16" in flags else "AVX2"


def front_predict(records: list[dict[str, Any]]) -> str:
    rows = [
        "From a PIL 480x640 picture to detections, batch 1, 2 threads, p50, in float32 with eager torch on both sides; "
        "the same detections come out:\n",
        "| CPU | model | ours ms | official ms | times as fast | peak memory, of official |",
        "|---|---|---|---|---|---|",
    ]
    for r in records:
        for name, m in r["models"].items():
            ours, official = m["ms"]["ours"]["p50"], m["ms"]["official"]["p50"]
            memory = m["facts"]["ours"]["peak_mb"] / m["facts"]["official"]["peak_mb"]
            rows.append(f"| {units(r)} | {name} | {ours:.0f} | {official:.0f} | {m['times_as_fast']['p50']:.2f} | {memory:.2f} |")
    lines = next(iter(records[0]["models"].values()))["facts"]
    rows.append(f"\nLines of code loaded by one predict: {lines['ours']['lines']:,} of ours, {lines['official']['lines']:,} official.")
    return "\n".join(rows)


def front_optimized(records: list[dict[str, Any]]) -> str:
    rows = [
        "The same with an artifact of `rapidetr optimize` or `export`, against official `predict` and the best setting of its "
        "`inference` (TorchScript):\n",
        "| CPU | model | artifact | ours ms | official, its best ms | times as fast | two streams, times its best "
        "| start to first detections, of official |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(records, key=lambda r: -next(iter(r["models"].values()))["times_as_fast"]["p50"]["official"]):
        for name, m in r["models"].items():
            facts, ms, fast, rates, starts = (
                m["facts"]["ours"], m["ms"], m["times_as_fast"]["p50"], m["two_streams_images_per_second"], m["cold_start_s"],
            )  # fmt: skip
            times = f"{ms['ours']['p50']:.0f} | {ms['official']['p50']:.0f}, {ms['official best']['p50']:.0f}"
            ratios = f"{fast['official']:.2f}, {fast['official best']:.2f} | {rates['ours'] / rates['official best']:.2f}"
            start = starts["ours"] / starts["official"]
            rows.append(f"| {units(r)} | {name} | {facts['engine']} {facts['precision']} | {times} | {ratios} | {start:.2f} |")
    rows.append(
        "\nThese weights are filled by a rule, so int8 and bf16 are judged elsewhere: on trained ones `optimize` adopts only what keeps AP"
    )
    rows.append("([docs/results.md](docs/results.md): int8 at half the time of float32, AP 0.596 of 0.594).")
    return "\n".join(rows)


def front_training(records: list[dict[str, Any]]) -> str:
    rows = [
        "One training step of Nano, optimizer included, as a part of the official one in the same precision:\n",
        "| CPU | batch | time, bf16 | time, fp32 | peak memory, bf16 | peak memory, fp32 |",
        "|---|---|---|---|---|---|",
    ]
    for r in records:
        for batch, sides in r["batches"].items():
            cells = []
            for value in (lambda side: side["ms"]["p50"], lambda side: side["peak_mb"]):
                for precision in ("bfloat16", "float32"):
                    ours, official = (sides.get(f"{side} {precision}") for side in ("ours", "official"))
                    cells.append(f"{value(ours) / value(official):.2f}" if ours and official else "-")
            rows.append(f"| {units(r)} | {batch} | {' | '.join(cells)} |")
    return "\n".join(rows)


FRONT: dict[str, Callable[[list[dict[str, Any]]], str]] = {  # shown in the README
    "predict_vs_official": front_predict,
    "optimized_vs_official": front_optimized,
    "train_vs_official": front_training,
    "startup": lambda records: "Starting, nothing loaded yet:\n\n" + startup(records[-1]),
}

if __name__ == "__main__":
    main()

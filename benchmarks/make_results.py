"""Write benchmarks/RESULTS.md, and the speed section of the README, from the JSON files beside this script.

.venv/bin/python benchmarks/make_results.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
    newest = {r["what"]: (path, r) for path, r in known}  # sorted by date within one kind of hardware
    front = [newest[w] for w in ("predict_vs_official", "startup") if w in newest]
    shown = [f"{WRITERS[r['what']](r)}\n\n{where(path, r, 'benchmarks/')}" for path, r in front]
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


def parity(r: dict[str, Any]) -> str:
    rows = [(k.replace("_", " "), v) for k, v in {"threshold": r["threshold"], **r["summary"]}.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


TITLES = {
    "predict_vs_official": "predict against the official package",
    "startup": "Start-up",
    "evaluate_vs_pycocotools": "Evaluation against pycocotools",
    "parity_vs_official": "Same detections as the official package on real photos",
}
WRITERS = {"predict_vs_official": predict, "startup": startup, "evaluate_vs_pycocotools": evaluation, "parity_vs_official": parity}

if __name__ == "__main__":
    main()

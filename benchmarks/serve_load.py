"""What a server on loopback does under open-loop load: below capacity, far above it, and when nothing it gets makes sense.

    .venv/bin/python benchmarks/serve_load.py --model pico --seconds 20 --malformed 10000

Starts `rapidetr serve` as its own process, measures its capacity closed-loop, then sends pictures at 0.3, 0.7 and 3 times
that, at times drawn beforehand (Poisson): a request that the client could send only late counts from when it was due.
After the overload, single requests tell how long until one is answered as fast as before. Then malformed requests made from
the server's OpenAPI description; memory of the server before and after. Writes one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from measure import percentile, write

from rapidetr.demo.dataset import write_dataset

JPEG = {"content-type": "image/jpeg"}


def start(model: str, words: list[str]) -> tuple[subprocess.Popen[str], str]:
    """The server and its address, once it listens."""
    command = [sys.executable, "-m", "rapidetr", "serve", model, "--port", "0", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    for line in child.stdout:
        print(line, end="", file=sys.stderr)
        if line.startswith("http://"):
            return child, line.strip().rstrip("/")
    raise SystemExit(f"the server ended with status {child.wait()}")


async def ask(client: httpx.AsyncClient, picture: bytes) -> int:
    """The status; 0 where no answer came."""
    try:
        return (await client.post("/v1/predict", content=picture, headers=JPEG)).status_code
    except httpx.HTTPError:
        return 0


async def alone(client: httpx.AsyncClient, pictures: list[bytes], count: int) -> list[float]:
    """Seconds of single requests, one after the other."""
    taken = []
    for picture in itertools.islice(itertools.cycle(pictures), count):
        began = time.perf_counter()
        assert await ask(client, picture) == 200
        taken.append(time.perf_counter() - began)
    return taken


async def capacity(client: httpx.AsyncClient, pictures: list[bytes], seconds: float, clients: int) -> float:
    """Answers a second, `clients` asking without a pause."""
    done, until = 0, time.perf_counter() + seconds

    async def go_on(picture: bytes) -> None:
        nonlocal done
        while time.perf_counter() < until:
            status = await ask(client, picture)  # in a line of its own: += would read `done` before it waits
            done += status == 200

    await asyncio.gather(*(go_on(pictures[i % len(pictures)]) for i in range(clients)))
    return done / seconds


async def load(client: httpx.AsyncClient, pictures: list[bytes], rate: float, seconds: float, most: int, seed: int) -> dict[str, Any]:
    """Requests at moments drawn beforehand, `rate` a second, at most `most`; latencies count from those moments."""
    draw, due = random.Random(seed), [0.0]
    while due[-1] < seconds and len(due) < most:
        due.append(due[-1] + draw.expovariate(rate))
    began, answers = time.perf_counter(), list[tuple[int, float]]()

    async def one(moment: float, picture: bytes) -> None:
        status = await ask(client, picture)
        answers.append((status, time.perf_counter() - began - moment))

    tasks = []
    for moment, picture in zip(due, itertools.cycle(pictures), strict=False):
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(one(moment, picture)))
    await asyncio.gather(*tasks)
    good = [1000 * taken for status, taken in answers if status == 200]
    statuses = Counter(str(status) for status, _ in answers)
    figures = {f"p{q}_ms": round(percentile(good, q), 1) for q in (50, 95, 99)} if good else {}
    return {"rate": round(rate, 2), "sent": len(answers), "statuses": statuses, "shed": round(statuses["503"] / len(answers), 4), **figures}


async def recovery(client: httpx.AsyncClient, pictures: list[bytes], usual_s: float, most_s: float) -> float | None:
    """Seconds until a request is answered within twice the usual time; None where that took longer than `most_s`."""
    began = time.perf_counter()
    while time.perf_counter() - began < most_s:
        asked = time.perf_counter()
        if await ask(client, pictures[0]) == 200 and time.perf_counter() - asked < 2 * usual_s:
            return round(time.perf_counter() - began, 2)
        await asyncio.sleep(0.1)
    return None


def value(schema: dict[str, Any], draw: random.Random) -> Any:
    """Something that a schema allows, almost allows, or does not know at all."""
    odd = [None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x" * 300, "\u0000", [], {}, [[]], {"a": 1}, "../../etc/passwd"]
    kinds = schema.get("anyOf", [schema])
    kind = draw.choice(kinds)
    usual: list[Any] = list(kind.get("enum", []))
    for bound in ("minimum", "maximum"):
        if bound in kind:
            usual += [kind[bound], kind[bound] - 1, kind[bound] + 1]
    if kind.get("type") == "array":
        usual.append([value(kind.get("items", {}), draw) for _ in range(draw.randint(0, 3))])
    return draw.choice(odd + 3 * usual)


def malformed(description: dict[str, Any], picture: bytes, draw: random.Random) -> dict[str, Any]:
    """Keywords of one request that the OpenAPI description almost allows."""
    operation = description["paths"]["/v1/predict"]["post"]
    # a short deadline is a good one, and may be answered with 503
    fields = {p["name"]: p["schema"] for p in operation["parameters"] if p["name"] != "deadline_ms"} | {"deadline": {"minimum": 1}}
    query = {name: str(value(schema, draw)) for name, schema in fields.items() if draw.random() < 0.2}
    kinds = [kind.replace("*", "jpeg") for kind in operation["requestBody"]["content"]] + ["text/html", ""]
    cut = draw.randrange(len(picture))
    pieces = [b"", draw.randbytes(draw.randint(1, 300)), picture[:cut], picture[:cut] + draw.randbytes(3) + picture[cut + 3 :]]
    kind, piece = draw.choice(kinds), draw.choice(pieces)
    if kind == "application/json" and draw.random() < 0.8:
        record = {name: value(schema, draw) for name, schema in fields.items() if draw.random() < 0.3}
        record["images"] = draw.choice([[base64.b64encode(piece).decode()], [piece.hex()], [1], None, "x", []])
        return {"content": json.dumps(record), "headers": {"content-type": kind}, "params": query}  # NaN and all
    if kind == "multipart/form-data" and draw.random() < 0.8:
        return {"files": {draw.choice(["images", "x", "\n"]): (draw.choice(["a.jpg", "../a", ""]), piece)}, "params": query}
    return {"content": piece, "headers": {"content-type": kind}, "params": query}


async def fuzz(client: httpx.AsyncClient, picture: bytes, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """Statuses of at most `count` malformed requests within `seconds`, eight at a time."""
    description, draw = (await client.get("/openapi.json")).json(), random.Random(seed)
    statuses, left, until = Counter[str](), count, time.perf_counter() + seconds

    async def go_on() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() < until:
            left -= 1
            try:
                statuses[str((await client.post("/v1/predict", **malformed(description, picture, draw))).status_code)] += 1
            except httpx.HTTPError as problem:
                statuses[type(problem).__name__] += 1

    await asyncio.gather(*(go_on() for _ in range(8)))
    return {"sent": sum(statuses.values()), "statuses": statuses, "server_errors": sum(n for s, n in statuses.items() if s >= "5")}


async def measure(address: str, pictures: list[bytes], server: psutil.Process, args: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        await alone(client, pictures, 5)
        single = [1000 * s for s in await alone(client, pictures, args.single)]
        usual = percentile(single, 50)
        record: dict[str, Any] = {"unloaded": {"n": len(single), **{f"p{q}_ms": round(percentile(single, q), 1) for q in (50, 95)}}}
        most = await capacity(client, pictures, args.seconds, args.clients)
        record["capacity_per_s"] = round(most, 2)
        for factor in (0.3, 0.7, 3.0):
            record[f"at_{factor:g}"] = await load(client, pictures, factor * most, args.seconds, args.most, args.seed)
            record[f"at_{factor:g}"]["recovery_s"] = await recovery(client, pictures, usual / 1000, 60)
        record["p95_at_0.7_over_unloaded_p50"] = round(record["at_0.7"].get("p95_ms", float("inf")) / usual, 2)
        await fuzz(client, pictures[0], args.malformed // 10, args.fuzz_seconds / 5, args.seed + 1)  # allocators settle
        before = server.memory_info().rss
        record["malformed"] = await fuzz(client, pictures[0], args.malformed, args.fuzz_seconds, args.seed)
        after = server.memory_info().rss
        record["memory_mb"] = {"before": round(before / 1e6, 1), "after": round(after / 1e6, 1), "grown": round((after - before) / 1e6, 1)}
        record["alive"] = (await client.get("/readyz")).status_code == 200 and await ask(client, pictures[0]) == 200
        return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--single", type=int, default=60, help="requests without load")
    parser.add_argument("--clients", type=int, default=16, help="that ask at once where capacity is measured")
    parser.add_argument("--most", type=int, default=20_000, help="requests of one load")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--fuzz-seconds", type=float, default=600.0, help="for all malformed requests")
    parser.add_argument("--serve", default="", help="options of `rapidetr serve`, such as '--threads 1 --streams 2'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="default: a file in this folder, named by hardware and date")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        write_dataset(Path(place), 8, 1, split="test", size_hw=(480, 640))
        pictures = [path.read_bytes() for path in sorted(Path(place).rglob("*.jpg"))]
    child, address = start(args.model, args.serve.split())
    try:
        record = asyncio.run(measure(address, pictures, psutil.Process(child.pid), args))
    finally:
        child.send_signal(signal.SIGTERM)
        status = child.wait(60)
    asked = {name: getattr(args, name) for name in ("model", "seconds", "clients", "malformed", "serve", "seed")}
    write("serve_load", {"asked": asked, **record, "exit_status": status, "threads": os.environ.get("OMP_NUM_THREADS")}, args.out)


if __name__ == "__main__":
    main()

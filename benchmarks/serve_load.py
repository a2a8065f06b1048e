"""What a server on loopback does under open-loop load: below capacity, far above it, and for long.

    .venv/bin/python benchmarks/serve_load.py --model pico --seconds 20 --soak 600

Starts `rapidetr serve` as its own process, measures its capacity closed-loop, then sends pictures at 0.3, 0.7 and 3 times
that, at times drawn beforehand (Poisson), and once more at 0.7 evenly spaced, as most load generators send: with Poisson arrivals
waiting behind others is most of a p95, whatever the server does. A request that could only be sent late counts from when it was due.
After each load, single requests tell how long until one is answered as fast as before. Then a soak at 0.7 of capacity, with the
server's memory from its first tenth to its end. The client takes some of the same cores. Writes one JSON document; ends with status
1 where a promise was not kept. serve_malformed.py does the same for requests that make no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

import httpx
import psutil
from measure import percentile, write

from rapidetr.demo.dataset import write_dataset

JPEG = {"content-type": "image/jpeg"}
FLAT_MB = 16.0  # of a soak; a server that kept the input of one picture in a hundred (1 MB) would grow by more within 1600 requests


def start(model: str, words: list[str], log: IO[str] | None = None) -> tuple[subprocess.Popen[str], str]:
    """The server and its address, once it listens; `log`: where its stderr goes."""
    command = [sys.executable, "-m", "rapidetr", "serve", model, "--port", "0", *words]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert child.stdout
    for line in child.stdout:
        print(line, end="", file=sys.stderr)
        if line.startswith("http://"):
            return child, line.strip().rstrip("/")
    raise SystemExit(f"the server ended with status {child.wait()}")


def stop(child: subprocess.Popen[str]) -> int:
    """Its exit status."""
    child.send_signal(signal.SIGTERM)
    return child.wait(60)


def pictures_of(count: int) -> list[bytes]:
    """JPEG files of rendered scenes."""
    with tempfile.TemporaryDirectory() as place:
        write_dataset(Path(place), count, 1, split="test", size_hw=(480, 640))
        return [path.read_bytes() for path in sorted(Path(place).rglob("*.jpg"))]


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
            done += status == 200 and time.perf_counter() < until

    await asyncio.gather(*(go_on(pictures[i % len(pictures)]) for i in range(clients)))
    return done / seconds


async def load(
    client: httpx.AsyncClient,
    pictures: list[bytes],
    rate: float,
    seconds: float,
    usual_s: float,
    most: int,
    seed: int,
    *,
    even: bool = False,
) -> dict[str, Any]:
    """Requests at moments drawn beforehand, `rate` a second, at most `most`; latencies count from those moments, recovery from the last."""
    draw, due = random.Random(seed), [0.0]
    while due[-1] < seconds and len(due) < most:
        due.append(due[-1] + (1 / rate if even else draw.expovariate(rate)))
    began, answers = time.perf_counter(), list[tuple[int, float]]()

    async def one(moment: float, picture: bytes) -> None:
        status = await ask(client, picture)
        answers.append((status, time.perf_counter() - began - moment))

    tasks = []
    for moment, picture in zip(due, itertools.cycle(pictures), strict=False):
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(one(moment, picture)))
    recovery_s = await recovery(client, pictures, usual_s, 60)
    await asyncio.gather(*tasks)
    good = [1000 * taken for status, taken in answers if status == 200]
    statuses = Counter(str(status) for status, _ in answers)
    figures = {f"p{q}_ms": round(percentile(good, q), 1) for q in (50, 95, 99)} if good else {}
    shed = round(statuses["503"] / len(answers), 4)
    return {"rate": round(rate, 2), "sent": len(answers), "statuses": statuses, "shed": shed, "recovery_s": recovery_s, **figures}


async def recovery(client: httpx.AsyncClient, pictures: list[bytes], usual_s: float, most_s: float) -> float | None:
    """Seconds until a request is answered within twice the usual time; None where that took longer than `most_s`."""
    began = time.perf_counter()
    while time.perf_counter() - began < most_s:
        asked = time.perf_counter()
        if await ask(client, pictures[0]) == 200 and time.perf_counter() - asked < 2 * usual_s:
            return round(time.perf_counter() - began, 2)
        await asyncio.sleep(0.1)
    return None


async def soak(
    client: httpx.AsyncClient, pictures: list[bytes], rate: float, usual_s: float, server: psutil.Process, args: argparse.Namespace
) -> dict[str, Any]:
    """Open loop in ten equal parts, and the server's memory after each."""
    parts = []
    for i in range(10):
        part = await load(client, pictures, rate, args.soak / 10, usual_s, args.most, args.seed + i)
        parts.append(part | {"rss_mb": rss_mb(server)})
    statuses = sum((part.pop("statuses") for part in parts), Counter[str]())
    return {"seconds": args.soak, "statuses": statuses, "parts": parts, "grown_mb": round(parts[-1]["rss_mb"] - parts[0]["rss_mb"], 1)}


def rss_mb(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 1e6, 1)


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
            record[f"at_{factor:g}"] = await load(client, pictures, factor * most, args.seconds, usual / 1000, args.most, args.seed)
        even = await load(client, pictures, 0.7 * most, args.seconds, usual / 1000, args.most, args.seed, even=True)
        record |= {"at_0.7_even": even, "p95_at_0.7_over_unloaded_p50": {}}
        for arrivals, found in (("even", even), ("poisson", record["at_0.7"])):
            record["p95_at_0.7_over_unloaded_p50"][arrivals] = round(found["p95_ms"] / usual, 2)
        record["soak_at_0.7"] = await soak(client, pictures, 0.7 * most, usual / 1000, server, args)
        record["alive"] = (await client.get("/readyz")).status_code == 200 and await ask(client, pictures[0]) == 200
        return record | {"kept": promises(record)}


def promises(record: dict[str, Any]) -> dict[str, bool]:
    """Which of them were kept."""
    loads = [record[name] for name in ("at_0.3", "at_0.7", "at_0.7_even", "at_3", "soak_at_0.7")]
    return {
        **{f"p95_at_0.7_{kind}_within_3_unloaded_p50": times <= 3 for kind, times in record["p95_at_0.7_over_unloaded_p50"].items()},
        "sheds_at_3": record["at_3"]["shed"] > 0,
        "nothing_but_200_and_503": all(set(found["statuses"]) <= {"200", "503"} for found in loads),
        "recovers_within_5_s": record["at_3"]["recovery_s"] is not None and record["at_3"]["recovery_s"] <= 5,
        "memory_flat": record["soak_at_0.7"]["grown_mb"] <= FLAT_MB,
        "alive": record["alive"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--single", type=int, default=60, help="requests without load")
    parser.add_argument("--clients", type=int, default=16, help="that ask at once where capacity is measured")
    parser.add_argument("--most", type=int, default=20_000, help="requests of one load")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds at 0.7 of capacity")
    parser.add_argument("--serve", default="", help="options of `rapidetr serve`, such as '--threads 1 --streams 2'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="default: a file in this folder, named by hardware and date")
    args = parser.parse_args()
    child, address = start(args.model, args.serve.split())
    try:
        record = asyncio.run(measure(address, pictures_of(8), psutil.Process(child.pid), args))
    finally:
        status = stop(child)
    asked = {name: getattr(args, name) for name in ("model", "seconds", "clients", "soak", "serve", "seed")}
    record["kept"]["exit_status_0"] = status == 0
    write("serve_load", {"asked": asked, **record, "threads": os.environ.get("OMP_NUM_THREADS")}, args.out)
    return 0 if all(record["kept"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Ten thousand malformed requests to a server on loopback: never a 5xx, nothing kept, and the same answer as before.

    .venv/bin/python benchmarks/serve_malformed.py --requests 10000

Starts `rapidetr serve` as its own process and sends requests drawn from its /openapi.json by seed (serve_requests.py), each on a
connection of its own, eight at a time. Ends with status 1 where one of these does not hold: no 5xx but 503 with Retry-After, in
the answers and in the server's own metrics; no traceback in its log; good requests are answered; a picture has the same
detections as before; memory and open files do not grow. Writes one JSON document.

Memory counts from the first tenth of the requests on: threads and allocators have then seen the largest picture, form and header
that are drawn, and keep what these took. Of the 9000 requests after that about half carry a picture file of 0.16 MB: a server that
kept one of these in twenty would grow by twice FLAT_BYTES. What is below that is the noise of malloc's arenas, one for each thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from measure import write
from serve_load import JPEG, pictures_of, start, stop
from serve_requests import Request, Source

AT_ONCE = 8
FLAT_BYTES = 16 * 2**20
PATIENCE_S = 90.0  # more than the server's deadline: a busy machine shall not look like a broken server


@dataclass
class Tally:
    """What came back. `wrong`: the first requests whose answer breaks a promise."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)  # by kind of request
    wrong: list[dict[str, Any]] = field(default_factory=list)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)  # seconds, and the number of the request

    def add(self, number: int, request: Request, status: int, head: bytes, body: bytes) -> None:
        self.statuses.setdefault(request.kind, Counter())[str(status or "no answer")] += 1
        shed = status == 503 and b"\r\nretry-after:" in head.lower()
        good = status == 200 or shed if request.kind == "good" else status < 500 or shed
        if not good or (not status and request.wire is None):
            self.wrong.append({"number": number, "kind": request.kind, "status": status, "body": body[:200].decode("latin-1")})


async def send(address: httpx.URL, request: Request) -> tuple[int, bytes, bytes]:
    """(status, head, body); status is 0 where the server hung up without an answer, 599 where it did neither in time."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    data = b""
    try:
        writer.write(request.encode())
        if request.wire is not None:
            with suppress(OSError):  # hung up on already
                writer.write_eof()  # else the server would wait for the rest, as it should
        while piece := await asyncio.wait_for(reader.read(2**16), PATIENCE_S):
            data += piece
    except TimeoutError:
        return 599, b"", data
    except OSError:  # hung up on while it was still sending
        pass
    finally:
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/") else 0), head, body


def figures(server: psutil.Process) -> dict[str, float]:
    return {"rss_mb": round(server.memory_info().rss / 1e6, 1), "open_files": server.num_fds(), "threads": server.num_threads()}


async def fuzz(address: httpx.URL, source: Source, server: psutil.Process, count: int, seed: int) -> tuple[Tally, dict[int, Any]]:
    """What came back, and the server's memory and files after each tenth, when nothing is under way."""
    tally, seen = Tally(), dict[int, Any]()

    async def go_on(numbers: Iterator[int]) -> None:
        for number in numbers:
            request = source.draw(random.Random(f"{seed}/{number}"))
            began = time.perf_counter()
            tally.add(number, request, *await send(address, request))
            taken = round(time.perf_counter() - began, 2), number
            tally.slowest[request.kind] = max(taken, tally.slowest.get(request.kind, taken))

    for tenth in range(10):
        begin, end = (count * t // 10 for t in (tenth, tenth + 1))
        numbers = iter(range(begin, end))
        await asyncio.gather(*(go_on(numbers) for _ in range(AT_ONCE)))
        seen[end] = figures(server)
        print(end, seen[end], file=sys.stderr)
    return tally, seen


def detections(client: httpx.Client, picture: bytes) -> Any:
    answer = client.post("/v1/predict", content=picture, headers=JPEG, params={"threshold": 0.1})
    return answer.raise_for_status().json()["images"][0]["detections"]


def server_errors(metrics: str) -> dict[str, float]:
    """5xx that the server counted itself, by status; 503 left out."""
    lines = [line for line in metrics.splitlines() if line.startswith("rapidetr_requests_total{") and 'status="5' in line]
    return {line: float(line.rsplit(" ", 1)[1]) for line in lines if 'status="503"' not in line}


def measure(address: str, picture: bytes, server: psutil.Process, args: argparse.Namespace) -> dict[str, Any]:
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        before = detections(client, picture)
        source = Source(client.get("/openapi.json").json(), picture)
        tally, seen = asyncio.run(fuzz(httpx.URL(address), source, server, args.requests, args.seed))
        after = detections(client, picture)
        counted = server_errors(client.get("/metrics").text)
        ready = client.get("/readyz").status_code == 200
    first, last = seen[args.requests // 10], seen[args.requests]
    grown = {name: round(last[name] - first[name], 1) for name in first}
    kept = {
        "no_5xx_but_shed": not tally.wrong and not counted,
        "same_detections": bool(before) and before == after and ready,
        "memory_flat": grown["rss_mb"] * 1e6 <= FLAT_BYTES,
        "files_closed": grown["open_files"] <= AT_ONCE,
    }
    statuses = sum(tally.statuses.values(), Counter[str]())
    record = {"requests": sum(statuses.values()), "statuses": statuses, "by_kind": tally.statuses, "wrong": tally.wrong[:20]}
    record["slowest_s_and_number"] = tally.slowest
    return {**record, "server_counted_5xx": counted, "after": seen, "grown": grown, "flat_mb": round(FLAT_BYTES / 1e6, 1), "kept": kept}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--serve", default="--device cpu --threads 1 --deadline-ms 60000", help="options of `rapidetr serve`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="default: a file in this folder, named by hardware and date")
    args = parser.parse_args()
    with tempfile.TemporaryFile("w+") as log:
        child, address = start(args.model, args.serve.split(), log)
        try:
            record = measure(address, pictures_of(1)[0], psutil.Process(child.pid), args)
        finally:
            status = stop(child)
        log.seek(0)
        tracebacks = log.read().count("Traceback")
    record["kept"] |= {"no_traceback": not tracebacks, "exit_status_0": status == 0}
    asked = {name: getattr(args, name) for name in ("model", "serve", "seed")}
    write("serve_malformed", {"asked": asked, **record}, args.out)
    print(json.dumps(record["kept"]), file=sys.stderr)
    return 0 if all(record["kept"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

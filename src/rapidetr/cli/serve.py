"""`rapidetr serve`: a model over HTTP, with a web page and metrics."""

from __future__ import annotations

import os
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from rapidetr.cli.console import Console
from rapidetr.cli.options import add_model_options, at_least, rate
from rapidetr.core.errors import BackendMissing, ConfigError

KEY = "RAPIDETR_API_KEY"
EXAMPLES = """\
  rapidetr serve pico
  rapidetr serve registry/current --port 8080 --service-level runs/choice/service_level.json
  rapidetr serve seg-nano --host 0.0.0.0 --api-key-file /run/secrets/keys --max-queue 128"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a file, an artifact, or a registry, whose pointer is followed")
    add_model_options(parser.add_argument_group("model"))
    group = parser.add_argument_group("who may come in")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    group.add_argument("--port", type=port, default=8080, metavar="N", help="0 takes a free one (default: 8080)")
    group.add_argument(
        "--api-key-file", metavar="FILE", help=f"keys, one a line, of those who may come in; {KEY} in the environment does too"
    )
    group.add_argument("--fetch-urls", action="store_true", help="take addresses of pictures; private networks stay closed")
    add_limits(parser.add_argument_group("limits; what comes beyond is refused with 4xx, or 503 and Retry-After"))
    group = parser.add_argument_group("operation")
    group.add_argument("--streams", type=at_least(1), default=1, metavar="N", help="batches that run side by side (default: 1)")
    group.add_argument("--poll", type=rate, default=2.0, metavar="S", help="how often the pointer of a registry is read (default: 2)")
    group.add_argument("--drain-grace", type=rate, default=3.0, metavar="S", help="after SIGTERM, for load balancers (default: 3)")
    group.add_argument("--access-log", action="store_true", help="one line for each request, on stderr")


def add_limits(group: Any) -> None:
    group.add_argument("--service-level", metavar="FILE", help="service_level.json of `rapidetr choose`; its p95 is the latency budget")
    group.add_argument("--latency-budget-ms", type=rate, metavar="MS", help="for waiting and a batch together (default: none)")
    group.add_argument("--max-batch", type=at_least(1), default=8, metavar="N", help="pictures that run together (default: 8)")
    group.add_argument("--max-queue", type=at_least(1), default=64, metavar="N", help="pictures in the house (default: 64)")
    group.add_argument("--max-images", type=at_least(1), default=16, metavar="N", help="pictures of one request (default: 16)")
    group.add_argument("--max-body-mb", type=rate, default=32, metavar="MB", help="of one request, in 2^20 bytes (default: 32)")
    group.add_argument("--max-pixels", type=at_least(1), default=50_000_000, metavar="N", help="of one picture (default: 50000000)")
    group.add_argument("--deadline-ms", type=at_least(1), default=10_000, metavar="MS", help="for an answer (default: 10000)")
    group.add_argument("--body-timeout", type=rate, default=10.0, metavar="S", help="for a whole body (default: 10)")


def port(text: str) -> int:
    """Argparse type: 0..65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")
    return int(text)


def run(args: Namespace, console: Console) -> int:
    try:
        from rapidetr.serving.app import create_app
        from rapidetr.serving.reload import Reloader, is_registry
        from rapidetr.serving.server import run_server
        from rapidetr.serving.service import Service
    except ImportError as problem:
        if problem.name is None or problem.name.startswith("rapidetr"):
            raise
        raise BackendMissing(f"serving needs {problem.name}; install it with: pip install 'rapidetr[serve]'") from None
    from rapidetr.runtime.places import find_artifact

    limits, keys = limits_of(args), keys_of(args)
    artifact = find_artifact(args.model)
    model = load(args, str(artifact or args.model), artifact)
    for note in model.detector.notes:
        console.say(f"note: {note}")
    service = Service(model, limits, fetch_urls=args.fetch_urls, streams=args.streams)
    service.warm_up(model)
    follows = is_registry(args.model)
    reloader = Reloader(args.model, service, lambda folder: load(args, str(folder), folder), poll_s=args.poll) if follows else None
    app = create_app(service, keys=keys, reloader=reloader)

    def tell(port: int) -> None:
        timed = ", ".join(f"{n}: {1000 * s:.1f} ms" for n, s in sorted(model.costs.seconds.items()))
        console.say(f"{model.id}, batches of {timed}")
        for line in warnings(args.host, bool(keys)):
            console.error(line)
        console.say(f"http://{args.host}:{port}/")

    run_server(app, service, host=args.host, port=args.port, grace_s=args.drain_grace, access_log=args.access_log, on_listening=tell)
    console.finish({"model": service.model.id})
    return 0


def load(args: Namespace, source: str, artifact: Path | None) -> Any:
    from rapidetr.cli.predict import load as load_detector
    from rapidetr.serving.served import serve_detector

    return serve_detector(load_detector(Namespace(**{**vars(args), "model": source})), artifact)


def limits_of(args: Namespace) -> Any:
    from rapidetr.serving.limits import ServeLimits, read_budget

    if args.service_level and args.latency_budget_ms:
        raise ConfigError("--service-level and --latency-budget-ms both name a budget; expected one of them")
    budget = read_budget(args.service_level) if args.service_level else args.latency_budget_ms
    return ServeLimits(
        max_body_bytes=int(args.max_body_mb * 2**20),
        max_held_bytes=max(256 * 2**20, 2 * int(args.max_body_mb * 2**20)),
        max_pixels=args.max_pixels,
        max_images=min(args.max_images, args.max_queue),
        max_batch=min(args.max_batch, args.max_queue),
        max_queue=args.max_queue,
        latency_budget_ms=budget,
        deadline_ms=args.deadline_ms,
        body_timeout_s=args.body_timeout,
    )


def keys_of(args: Namespace) -> tuple[bytes, ...]:
    """API keys of the file and the environment; never of the command line, which everybody on the machine can read."""
    from rapidetr.serving.limits import read_keys

    keys: tuple[bytes, ...] = ()
    if args.api_key_file:
        keys += read_keys(Path(args.api_key_file).read_text(encoding="utf-8"), args.api_key_file)
    if KEY in os.environ:
        keys += read_keys(os.environ[KEY], KEY)
    return keys


def warnings(host: str, keys: bool) -> list[str]:
    from rapidetr.serving.limits import is_loopback

    if is_loopback(host) or keys:
        return []
    return [f"warning: {host} is open to other machines without an API key; set {KEY} or --api-key-file, or put a proxy before it"]

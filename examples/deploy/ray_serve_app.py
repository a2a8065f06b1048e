"""The HTTP app of `rapidetr serve` on Ray Serve.

    serve run --app-dir examples/deploy ray_serve_app:app model=registry/current

On a cluster this file lies in the image (see Containerfile), where every replica finds it.
"""

from __future__ import annotations

import os
from typing import Any

KEY = "RAPIDETR_API_KEY"


def make_app(model: str, threads: int | None = None) -> Any:
    """A FastAPI app around one model, which it loads; called in each replica. A registry's pointer is followed.

    RAPIDETR_API_KEY holds the keys of those who may come in, as for `rapidetr serve`; each replica needs it in its environment.
    """
    from rapidetr.runtime.load import load
    from rapidetr.runtime.places import find_artifact
    from rapidetr.serving.app import create_app
    from rapidetr.serving.limits import ServeLimits, read_keys
    from rapidetr.serving.reload import Reloader, is_registry
    from rapidetr.serving.served import serve_detector
    from rapidetr.serving.service import Service

    served = serve_detector(load(model, threads=threads), find_artifact(model))
    service = Service(served, ServeLimits())
    service.warm_up(served)
    follow = Reloader(model, service, lambda folder: serve_detector(load(str(folder), threads=threads), folder))
    keys = read_keys(os.environ[KEY], KEY) if KEY in os.environ else ()
    return create_app(service, keys=keys, reloader=follow if is_registry(model) else None)


def app(arguments: dict[str, str]) -> Any:
    """What `serve run` starts; arguments are written name=value: model, least, most, gpus."""
    from rapidetr.batch.ray_serve import deploy

    replicas = int(arguments.get("least", 1)), int(arguments.get("most", 1))
    return deploy("ray_serve_app:make_app", {"model": arguments["model"]}, replicas=replicas, gpus=float(arguments.get("gpus", 0)))

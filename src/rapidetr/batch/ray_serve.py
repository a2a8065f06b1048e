"""An HTTP app on Ray Serve: replicas of it behind one port."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rapidetr.core.errors import BackendMissing, ConfigError


def deploy(
    factory: str,
    arguments: Mapping[str, Any],
    *,
    replicas: tuple[int, int] = (1, 1),
    cpus: float = 1.0,
    gpus: float = 0.0,
    max_ongoing_requests: int = 64,
    name: str = "rapidetr",
) -> Any:
    """A Ray Serve application for `serve.run`, of `replicas` (least, most) processes.

    Each calls `factory`, written "module:function" and found where the replica runs, with `arguments`; it returns the ASGI
    app, such as that of `rapidetr serve`. A replica holds at most `max_ongoing_requests`: no fewer than the app's own queue,
    so that the app decides what it sheds.
    """
    module, _, function = factory.partition(":")
    if not module or not function:
        raise ConfigError(f"factory is {factory!r}; expected module:function, such as ray_serve_app:make_app")
    try:
        from ray import serve
    except ImportError as problem:
        raise BackendMissing(f"this needs Ray Serve ({problem}); install it with: pip install 'rapidetr[ray,serve]'") from None

    def build() -> Any:
        return getattr(import_module(module), function)(**arguments)

    least, most = replicas
    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name=name,
        autoscaling_config={"min_replicas": least, "max_replicas": most, "target_ongoing_requests": max_ongoing_requests / 4},
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment.bind()

"""The HTTP app. `rapidetr serve` runs it under uvicorn; any other ASGI server may."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from rapidetr import __version__
from rapidetr.core.errors import ConfigError, ImageError
from rapidetr.serving.body import read_request
from rapidetr.serving.guard import Guard, problem_of, refuse
from rapidetr.serving.limits import Refusal
from rapidetr.serving.reload import Reloader
from rapidetr.serving.schema import BODY, PARAMETERS, PREDICT_RESPONSES, Card, problem_response
from rapidetr.serving.service import Service

DESCRIPTION = (
    "Object detection and instance segmentation with RF-DETR. Boxes are left, top, right, bottom in pixels; sizes are [height, width]."
)


def create_app(service: Service, *, keys: Sequence[bytes] = (), reloader: Reloader | None = None) -> FastAPI:
    """The app around a service, which it starts and closes. `keys`: API keys, empty for none."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        if reloader:
            reloader.start()
        yield
        if reloader:
            await asyncio.to_thread(reloader.close)
        await asyncio.to_thread(service.close)  # what is still in the house needs this loop to be answered

    app = FastAPI(
        title="RapiDETR",
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        openapi_tags=[{"name": "predict"}, {"name": "operate"}],
    )
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics, keys=keys, now=service.now)
    add_handlers(app)
    add_predict(app, service)
    add_operation(app, service)
    add_page(app)
    return app


def add_handlers(app: FastAPI) -> None:
    """The library's errors as 4xx."""

    @app.exception_handler(HTTPException)
    async def http(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        kind = HTTPStatus(problem.status_code).phrase.title().replace(" ", "")
        told = (
            problem.detail if problem.status_code == 400 else f"{request.method} {request.url.path[:200]} is not there; see /openapi.json"
        )
        response = problem_of(problem.status_code, kind, str(told))
        response.headers.update(problem.headers or {})
        return response

    @app.exception_handler(ImageError)
    @app.exception_handler(ConfigError)
    async def refused(request: Request, problem: Exception) -> Response:
        return problem_of(422, type(problem).__name__, str(problem))

    @app.exception_handler(Refusal)
    async def refusal(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Refusal)
        if problem.status in (408, 413):
            raise problem  # the guard reads on for a moment
        return refuse(problem)


def add_predict(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predict",
        tags=["predict"],
        summary="Find objects in pictures",
        responses=PREDICT_RESPONSES,
        openapi_extra={"requestBody": BODY, "parameters": PARAMETERS},
    )
    async def predict(request: Request) -> Response:
        """One picture as raw bytes, several in a form, or base64 in JSON. Options go into the query, the form or the JSON."""
        began = request.state.began
        service.batcher.check_places(1, service.model)  # before its body is read and decoded
        asked = await read_request(request, service.limits)
        read_ms = 1000 * (service.now() - began)
        return Response(await service.predict(asked, began, read_ms), media_type="application/json")

    @app.get("/v1/model", tags=["predict"], summary="The model in use", response_model=Card, responses={401: problem_response(401)})
    async def model() -> Any:
        return service.model.card()


def add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operate"], summary="200 while the process works", responses={503: {}})
    async def healthz() -> Response:
        alive = service.alive
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    @app.get("/readyz", tags=["operate"], summary="200 while requests are welcome; 503 before and while it goes down", responses={503: {}})
    async def readyz() -> Response:
        state = {"ready": service.ready, "draining": service.draining, "model": service.model.id, "reload": service.reload_state}
        return JSONResponse(state, 200 if service.ready else 503)

    @app.get("/metrics", tags=["operate"], summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def add_page(app: FastAPI) -> None:
    page = files("rapidetr.serving").joinpath("page.html").read_text(encoding="utf-8")
    policy = {"Content-Security-Policy": security_policy(page), "Permissions-Policy": "camera=(self), microphone=(), geolocation=()"}

    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return HTMLResponse(page, headers=policy)


def security_policy(page: str) -> str:
    """Nothing may run or load but what stands in the page itself, and requests to this server."""
    sources = {}
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        sources[kind] = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{sources['script']}'; style-src 'sha256-{sources['style']}'; img-src 'self' blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

"""The application: endpoints over engines, the page, and the guard before both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from digseg_engine import __version__
from digseg_engine.errors import DigsegError
from digseg_engine.runtime.encoding import Encoding
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.saving import PALETTE
from digseg_engine.serving.answers import answer, png
from digseg_engine.serving.guard import LOCAL, Guard
from digseg_engine.serving.limits import IN_MEMORY, Limits
from digseg_engine.serving.metrics import Metrics
from digseg_engine.serving.page_files import page_files
from digseg_engine.serving.problems import RequestError, body, gone, malformed, problem_of, too_large
from digseg_engine.serving.requests import check_prompts, read
from digseg_engine.serving.schema import (
    BINARY,
    Answer,
    EncodeRequest,
    EncodingMade,
    Failed,
    SegmentRequest,
    Served,
    body_of,
)
from digseg_engine.serving.shelf import Shelf
from digseg_engine.serving.uploads import Upload, picture_of
from digseg_engine.serving.work import Work

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failed, "description": words}
    for status, words in {
        400: "the body is no form or JSON", 401: "the token lacks or is wrong", 403: "the host or origin is not known here",
        404: "nothing of that name is here", 408: "the body came too slowly", 413: "the body or the picture is too large",
        415: "the body is of another type", 422: "the question cannot be answered", 429: "too many requests wait",
        500: "the model failed", 503: "the server is ending",
    }.items()
}  # fmt: skip
PNG = {"image/png": {"schema": BINARY}}
TEXT = {"text/plain": {"schema": {"type": "string"}}}
CODES = {404: "not_found", 405: "method_not_allowed"}
SWEEP = 15.0  # seconds between two looks for encodings that nobody asks about


@dataclass
class Service:
    """Engines by name, what is kept and who waits."""

    engines: Mapping[str, Engine]
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.shelf, self.work = Shelf(self.limits), Work(self.limits)
        self.metrics.queue.set_function(lambda: self.work.taken)
        self.metrics.kept.set_function(lambda: len(self.shelf))
        self.metrics.kept_bytes.set_function(lambda: self.shelf.nbytes)

    def engine(self, name: str | None) -> tuple[str, Engine]:
        """The model of that name, or the first one. Raises RequestError for an unknown one."""
        name = next(iter(self.engines)) if name is None else name
        if name not in self.engines:
            raise RequestError(
                404, "unknown_model", f"no model {name!r:.80} is served; expected one of {', '.join(self.engines)}"
            )
        return name, self.engines[name]

    def check_size(self, size: int | None) -> None:
        if size is not None and size > self.limits.size:
            raise too_large(
                f"a working size of {size} pixels was asked for, this server takes at most {self.limits.size}"
            )

    async def do(self, request: Request, task: Callable[[], Any]) -> Any:
        """A task in its turn; what the engine says of it, as a RequestError."""
        try:
            return await self.work.do(request, task)
        except DigsegError as error:
            raise problem_of(error) from error

    async def encode(self, request: Request) -> dict[str, Any]:
        """A picture, kept."""
        asked, upload = await read(request, EncodeRequest, self.limits)
        name, engine = self.engine(asked.model)
        self.check_size(asked.size)
        if upload is None:
            raise malformed("image is missing; send the picture")
        encoding = await self.do(request, lambda: engine.encode(picture_of(upload, self.limits), asked.size))
        identifier = self.shelf.put(encoding, name)
        self.metrics.pictures.inc()
        self.metrics.spent(encoding.seconds)
        height, width = encoding.frame.original
        return {
            "id": identifier, "model": name, "picture": encoding.picture.path, "width": width, "height": height,
            "working_size": encoding.size, "bytes": self.shelf.get(identifier).nbytes, "keeps": self.limits.encoding_seconds,
            "seconds": {key: round(value, 5) for key, value in encoding.seconds.items()},
            "notes": [*encoding.notes, *encoding.picture.notes],
        }  # fmt: skip

    async def segment(self, request: Request) -> bytes:
        """The answer as JSON, made in the same thread as its masks."""
        asked, upload = await read(request, SegmentRequest, self.limits)
        check_prompts(asked.prompts, asked.against, self.limits)
        self.check_size(asked.size)
        kept = None if asked.encoding is None else self.shelf.get(asked.encoding)
        if (upload is None) == (kept is None):
            raise malformed("expected either image or encoding; send the picture, or the id of one that was encoded")
        if kept is not None and asked.model not in (None, kept.model):
            raise malformed(
                f"the picture was encoded by {kept.model!r}, and {asked.model!r:.80} was asked; leave model out"
            )
        given = upload or Upload(b"")
        _, engine = self.engine(asked.model if kept is None else kept.model)

        def task() -> bytes:
            picture = kept.encoding if kept is not None else picture_of(given, self.limits)
            height, width = picture.frame.original if isinstance(picture, Encoding) else picture.pixels.shape[:2]
            whole = height * width * len(asked.prompts or engine.vocabulary) <= IN_MEMORY
            result = engine.segment(
                picture, asked.prompts, asked.size, threshold=asked.threshold, keep_masks=whole, against=asked.against,
                all_prompts=asked.all_prompts,
            )  # fmt: skip
            self.metrics.spent(result.timings)
            self.metrics.prompts.inc(len(result.prompts))
            return json.dumps(answer(result, asked.output), ensure_ascii=False, separators=(",", ":")).encode("utf-8")

        made: bytes = await self.do(request, task)
        if kept is None:
            self.metrics.pictures.inc()
        return made

    def served(self) -> dict[str, Any]:
        models = [
            {"name": name, "sha256": engine.source.digest if engine.source.bundle is None else engine.source.bundle.digest,
             "backend": engine.backend.detail, "working_size": engine.source.usual_side,
             "vocabulary": list(engine.vocabulary) or None}
            for name, engine in self.engines.items()
        ]  # fmt: skip
        return {"version": __version__, "models": models, "limits": asdict(self.limits), "palette": PALETTE}

    def warm(self) -> None:
        """One small question to every model, so that the first visitor does not wait for what happens once."""
        for engine in self.engines.values():
            engine.segment(
                np.zeros((64, 64, 3), np.uint8), list(engine.vocabulary[:1]) or ["a thing"], keep_masks=False
            )


def create_app(
    engines: Mapping[str, Engine], limits: Limits | None = None, token: str | None = None,
    hosts: frozenset[str] | None = LOCAL, origins: tuple[str, ...] = (),
) -> Guard:  # fmt: skip
    """The ASGI application over engines by name, the first one the usual one. token: what requests must bear; hosts: names that
    they may address, None for any; origins: other sites whose pages may ask. Set its `ending` to refuse new work."""
    service = Service(engines, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP)
                service.shelf.sweep()

        sweeper = asyncio.ensure_future(sweep())
        yield
        sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await sweeper
        await asyncio.to_thread(service.work.close)

    app = FastAPI(title="DiGSeg Engine", version=__version__, summary="Text-prompted segmentation over HTTP", docs_url=None,
                  redoc_url=None, lifespan=lifespan)  # fmt: skip
    app.state.service = service
    _tell_errors(app)
    _add_questions(app, service)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"],
                           allow_headers=["Authorization", "Content-Type"])  # fmt: skip
    guard = Guard(app, service.limits, service.metrics, token, hosts, origins)
    _add_states(app, service, guard)
    _add_page(app)
    return guard


def _tell_errors(app: FastAPI) -> None:
    @app.exception_handler(DigsegError)
    async def known(request: Request, error: DigsegError) -> JSONResponse:
        return problem_of(error).response()

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> JSONResponse:
        return gone().response()

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, "malformed")
        words = f"{request.method} {request.url.path:.120}: {error.detail}; /openapi.json says what there is"
        return JSONResponse(body(error.status_code, code, words), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(body(500, "failed", "the server failed; its log says why"), 500)


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/encode",
        tags=["segment"],
        response_model=EncodingMade,
        responses=ERRORS,
        openapi_extra=body_of(EncodeRequest),
    )
    async def encode(request: Request) -> Response:
        """Encode a picture once, to ask about it with /v1/segment any number of times for the price of the prompts."""
        return JSONResponse(await service.encode(request))

    @app.post(
        "/v1/segment", tags=["segment"], response_model=Answer, responses=ERRORS, openapi_extra=body_of(SegmentRequest)
    )
    async def segment(request: Request) -> Response:
        """One mask per prompt, of a picture or of one that was encoded before."""
        return Response(await service.segment(request), media_type="application/json")

    @app.get("/v1/encodings/{identifier}/picture", tags=["segment"], response_class=Response,
             responses={**ERRORS, 200: {"content": PNG}})  # fmt: skip
    async def picture(identifier: str, request: Request) -> Response:
        """The picture as the model saw it: turned upright, without transparency, 8 bits."""
        pixels = service.shelf.get(identifier).encoding.picture.pixels
        return Response(await service.do(request, lambda: png(Image.fromarray(pixels))), media_type="image/png")

    @app.delete(
        "/v1/encodings/{identifier}", tags=["segment"], status_code=204, responses=ERRORS, response_class=Response
    )
    async def forget(identifier: str) -> Response:
        """Let go of an encoding."""
        service.shelf.drop(identifier)
        return Response(status_code=204)

    @app.get(
        "/v1/models", tags=["segment"], response_model=Served, responses={key: ERRORS[key] for key in (401, 403, 503)}
    )
    async def models() -> Response:
        """The models, and the most that this server takes."""
        return JSONResponse(service.served())


def _add_states(app: FastAPI, service: Service, guard: Guard) -> None:
    @app.get("/healthz", tags=["state"])
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["state"], responses={503: ERRORS[503]})
    async def readyz() -> dict[str, str]:
        """The server takes work: it is not ending, and its queue has room."""
        if guard.ending or service.work.full:
            raise RequestError(503, "ending" if guard.ending else "busy", "the server takes no new work now")
        return {"status": "ready"}

    @app.get("/metrics", tags=["state"], response_class=Response, responses={200: {"content": TEXT}, 401: ERRORS[401]})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    """Every file of the page at its own path, so that other paths and methods stay those of the API."""
    for name, path in page_files().items():

        async def file(request: Request, path: Path = path) -> Response:
            answer = await StaticFiles(directory=path.parent).get_response(path.name, request.scope)
            answer.headers["cache-control"] = "no-cache"  # asked for again, and sent again where it has changed
            return answer

        app.add_route(f"/{'' if name == 'index.html' else name}", file, ["GET"], include_in_schema=False)

"""The HTTP interface; docs/serving.md describes it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..runtime.structure import to_json
from .messages import MessageError
from .metrics import ServerMetrics
from .replies import TASKS
from .requests import FrameLimits, unpack_frame
from .service import Answer, FrameService

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/vnd.safetensors"
_LONGEST_STREAM = 128  # characters of its name
_LONGEST_REASON = 500  # characters; a reason may quote what was sent


@dataclass(frozen=True)
class ServerLimits:
    """What a client may ask of the server.

    Args:
        message_bytes: of a frame's message.
        upload_seconds: that a message may take to arrive, while it holds a place in the queue.
        frame: how much of everything a frame may hold.
    """

    message_bytes: int = 64 << 20
    upload_seconds: float = 30.0
    frame: FrameLimits = field(default_factory=FrameLimits)


class Refusal(Exception):
    """A frame that gets no result."""

    def __init__(
        self,
        status: int,
        kind: str,
        reason: str,
        field: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(reason)
        self.status, self.kind, self.reason = status, kind, reason
        self.field, self.retry_after = field, retry_after

    def response(self) -> Response:
        """As JSON: {"error": {"kind", "reason", "field"}}."""
        error = {"kind": self.kind, "reason": self.reason[:_LONGEST_REASON]}
        if self.field is not None:
            error["field"] = self.field[:_LONGEST_REASON]
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse({"error": error}, self.status, headers)


class FrameApp:
    """Answers requests with a service."""

    def __init__(self, service: FrameService, limits: ServerLimits | None = None):
        self.service, self.limits = service, limits or ServerLimits()
        self.failure: Exception | None = None  # what kept the model from being loaded
        self.stop = lambda: None  # set by whoever runs the app: ends the server
        self.metrics = ServerMetrics(lambda: service.queue_depth, lambda: service.is_ready)

    def asgi(self) -> Starlette:
        """The application for an ASGI server."""
        routes = [
            Route("/v1/frames", self.frames, methods=["POST"]),
            Route("/v1/model", self.model),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.numbers),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.service.start(self._fail)
        yield
        self.service.close()

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.stop()

    async def health(self, _: Request) -> Response:
        """The process lives."""
        return PlainTextResponse("ok\n")

    async def ready(self, _: Request) -> Response:
        """Frames are taken."""
        if self.service.is_ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("loading\n", 503, {"Retry-After": "1"})

    async def numbers(self, _: Request) -> Response:
        """Counters for Prometheus."""
        return Response(self.metrics.text(), media_type=self.metrics.content_type)

    async def model(self, _: Request) -> Response:
        """The manifest of the export, and the limits of this server."""
        content = {"manifest": to_json(self.service.manifest), "limits": to_json(self.limits)}
        return JSONResponse(content)

    async def frames(self, request: Request) -> Response:
        """One frame in, its results out."""
        start = time.perf_counter()
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            self.metrics.errors.labels(refusal.kind).inc()
            response = refusal.response()
        else:
            self.metrics.latency.observe(time.perf_counter() - start)
            for stage, seconds in answer.seconds.items():
                self.metrics.stages.labels(stage).observe(seconds)
            response = Response(answer.message, media_type=MEDIA_TYPE)
        self.metrics.requests.labels(response.status_code).inc()
        return response

    async def _answer(self, request: Request) -> Answer:
        stream, service = self._stream(request), self.service
        tasks = self._tasks(request, stream)
        if int(request.headers.get("content-length", 0)) > self.limits.message_bytes:
            raise self._too_large()
        if not service.is_ready:
            raise Refusal(503, "loading", "the model is being loaded", retry_after=1)
        if not service.admit():
            wait = service.retry_after_seconds
            raise Refusal(503, "busy", "the queue is full; try again later", retry_after=wait)
        try:
            body = await self._body(request)
            frame = unpack_frame(body, service.manifest.sensors.frame, self.limits.frame)
            return await self._result(request, service.submit(frame, tasks, stream))
        except MessageError as error:
            raise Refusal(400, "malformed", str(error), error.field) from error
        finally:
            service.leave()

    def _stream(self, request: Request) -> str | None:
        stream = request.query_params.get("stream")
        if stream is not None and not 0 < len(stream) <= _LONGEST_STREAM:
            reason = f"a stream has a name of 1 to {_LONGEST_STREAM} characters"
            raise Refusal(400, "malformed", reason, "stream")
        return stream

    def _tasks(self, request: Request, stream: str | None) -> tuple[str, ...]:
        """The tasks that are asked for; by default boxes, and in a stream their tracks."""
        manifest = self.service.manifest
        has = [task for task in TASKS if task in manifest.heads]
        if stream is not None and manifest.tracker is not None:
            has.append("tracks")
        asked = request.query_params.get("tasks")
        if asked is None:
            boxes = [task for task in ("detection", "tracks") if task in has]
            return tuple(boxes or has)
        tasks = tuple(asked.split(","))
        if "tracks" in tasks and stream is None:
            raise Refusal(400, "malformed", "tracks need a stream; name one: stream=KEY", "tasks")
        if unknown := [task for task in tasks if task not in has]:
            reason = f"this model has no task {unknown[0]!r}; it has {', '.join(has)}"
            raise Refusal(400, "malformed", reason, "tasks")
        return tasks

    async def _body(self, request: Request) -> bytearray:
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.limits.message_bytes:
                        raise self._too_large()
        except TimeoutError as error:
            reason = f"the message took longer than {self.limits.upload_seconds:g} s to arrive"
            raise Refusal(408, "slow", reason) from error
        except ClientDisconnect as error:
            raise _gone() from error
        return body

    async def _result(self, request: Request, future) -> Answer:
        """The answer; a frame whose client has gone is not begun."""
        waiting = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # nothing comes but the end
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and not future.cancel():
                await asyncio.wait({waiting})  # it runs, and keeps its place until it is done
            if waiting.cancelled() or gone.done():
                raise _gone()
            return waiting.result()
        except (MessageError, Refusal):
            raise
        except Exception as error:
            logger.exception("a frame failed")
            reason = "the model failed on this frame; the server's log says why"
            raise Refusal(500, "internal", reason) from error
        finally:
            gone.cancel()

    def _too_large(self) -> Refusal:
        most = self.limits.message_bytes
        return Refusal(413, "too_large", f"the message is larger than {most} bytes, the most")


def _gone() -> Refusal:
    return Refusal(499, "disconnected", "the client has gone")  # nobody sees it but the counters

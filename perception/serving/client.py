"""A client of ``bevstack serve`` on the standard library and numpy.

    client = Client("http://127.0.0.1:8080")
    reply = client.run(frame, tasks=("detection", "map"))
    print(reply.names(reply.detections.boxes), reply.detections.boxes.center)

A ``Frame`` is made of plain arrays (``datasets/frame.py``); ``EncodedImage`` holds a JPEG's bytes.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

from ...datasets.frame import Frame
from .frames import pack_frame
from .replies import Reply, unpack_reply


class ServerError(Exception):
    """A frame that got no result.

    Args:
        status: of HTTP.
        kind: malformed, too_large, busy, loading, slow or internal.
        reason: in words.
        field: what is wrong in the message, where the server says so.
        retry_after: seconds after which to try again, where the server says so.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        reason: str,
        field: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(f"{status} {kind}: {reason}")
        self.status, self.kind, self.reason = status, kind, reason
        self.field, self.retry_after = field, retry_after


class Client:
    """One connection to a server, kept open; for use by one thread at a time.

    Args:
        url: of the server, ``http://HOST:PORT``.
        timeout: seconds without a sign of life after which a call gives up.
        patience: seconds that a call may go on trying while the server is busy or loading.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8080", timeout: float = 60.0, patience: float = 0.0
    ):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is not http://HOST:PORT")
        self.timeout, self.patience = timeout, patience
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def run(
        self, frame: Frame, tasks: tuple[str, ...] | None = None, stream: str | None = None
    ) -> Reply:
        """What the model finds in a frame.

        Args:
            frame: images, points and calibration.
            tasks: of ``detection``, ``tracks``, ``map``, ``occupancy``; default: boxes, and their
                tracks in a stream.
            stream: a name of your own for frames of one vehicle, sent in order: tracks and a
                model's memory go on from one to the next. None for a frame on its own.

        Raises:
            ServerError: if the server refuses the frame.
            OSError: if it cannot be reached.
        """
        return unpack_reply(self.post(pack_frame(frame), tasks, stream))

    def post(
        self, message: bytes, tasks: tuple[str, ...] | None = None, stream: str | None = None
    ) -> bytes:
        """The same for a message that is already made; see docs/serving.md."""
        options = {"tasks": ",".join(tasks)} if tasks is not None else {}
        options |= {"stream": stream} if stream is not None else {}
        path = "/v1/frames" + ("?" + urlencode(options) if options else "")
        give_up = time.monotonic() + self.patience
        while True:
            status, headers, body = self._request("POST", path, message)
            if status == 200:
                return body
            error = _error(status, headers, body)
            wait = error.retry_after
            if wait is None or time.monotonic() + wait > give_up:
                raise error
            time.sleep(wait)

    def is_ready(self) -> bool:
        """Whether the server takes frames; False too where there is no server."""
        try:
            return self._request("GET", "/ready")[0] == 200
        except OSError:
            return False

    def model(self) -> dict[str, Any]:
        """The manifest of the model and the limits of the server."""
        return json.loads(self._get("/v1/model"))

    def metrics(self) -> str:
        """The server's counters, in Prometheus' text format."""
        return self._get("/metrics").decode()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def _get(self, path: str) -> bytes:
        status, headers, body = self._request("GET", path)
        if status != 200:
            raise _error(status, headers, body)
        return body

    def _request(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        was_open = self._connection.sock is not None
        try:
            return self._exchange(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A server closes connections that were idle for some seconds.
            if not was_open:
                raise
            return self._exchange(method, path, body)

    def _exchange(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        try:
            self._connection.request(method, path, body)
            response = self._connection.getresponse()
            return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise


def _error(status: int, headers: http.client.HTTPMessage, body: bytes) -> ServerError:
    retry_after = headers.get("Retry-After")
    try:
        error = json.loads(body)["error"]
        kind, reason, field = error["kind"], error["reason"], error.get("field")
    except (ValueError, KeyError, TypeError):
        kind, reason, field = "http", body[:200].decode(errors="replace"), None
    wait = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return ServerError(status, kind, reason, field, wait)

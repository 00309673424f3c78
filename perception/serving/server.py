"""Run the HTTP interface until it is told to stop."""

from __future__ import annotations

import signal
import socket

import uvicorn

from .app import FrameApp


def run(app: FrameApp, host: str, port: int, shutdown_seconds: int = 30) -> None:
    """Serve until SIGTERM or SIGINT; frames that were taken then are finished, no more are taken.

    Args:
        app: what answers.
        host: address to listen on.
        port: 0 for any free one.
        shutdown_seconds: that frames in progress may take at the end.

    Raises:
        ValueError: if the address cannot be had.
        Exception: what kept the model from being loaded.
    """
    listener = _listen(host, port)
    # The requests themselves are counted in /metrics.
    config = uvicorn.Config(
        app.asgi(), http="h11", ws="none", lifespan="on", log_level="warning", access_log=False,
        timeout_graceful_shutdown=shutdown_seconds,
    )  # fmt: skip
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    app.stop = stop
    where = f"[{host}]" if ":" in host else host
    address = f"http://{where}:{listener.getsockname()[1]}"
    print(f"{address}: POST frames to /v1/frames once /ready says so; stop with Ctrl-C", flush=True)
    # uvicorn raises the signal again once it is done: an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: _exit())
    server.run(sockets=[listener])
    if app.failure is not None:
        raise app.failure


def _exit() -> None:
    raise SystemExit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{host} port {port} cannot be listened on ({reason}); choose another --host or --port"
        ) from error

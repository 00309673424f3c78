"""``bevstack serve``: an exported model over HTTP. Needs no torch."""

from __future__ import annotations

from pathlib import Path


def serve(
    export: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    queue_size: int = 4,
    max_streams: int = 16,
    max_message_mb: float = 64.0,
    upload_seconds: float = 30.0,
    shutdown_seconds: int = 30,
    threads: int | None = None,
    providers: list[str] | None = None,
) -> None:
    """Answer frames over HTTP with what an exported model finds in them; see docs/serving.md.

    There is no encryption and no password: open it to machines you trust, or put a proxy before it.

    Args:
        export: what ``bevstack export`` wrote.
        host: address to listen on; 0.0.0.0 for all of this machine's.
        port: port to listen on; 0 for any free one.
        queue_size: frames that may wait while one runs; more are refused (503, Retry-After).
        max_streams: streams whose tracks and memory are kept; of more, the quietest is forgotten.
        max_message_mb: largest message, MB; larger ones are refused (413).
        upload_seconds: that a message may take to arrive.
        shutdown_seconds: that frames in progress may take after SIGTERM or Ctrl-C.
        threads: cores to use; default: all.
        providers: ONNX Runtime's execution providers, best first; default: the CPU.
    """
    from ..runtime import RuntimeOptions
    from ..serving.app import FrameApp, ServerLimits
    from ..serving.server import run
    from ..serving.service import FrameService

    if not (max_message_mb > 0 and upload_seconds > 0 and shutdown_seconds >= 0):
        raise ValueError("max_message_mb, upload_seconds and shutdown_seconds must be positive")
    options = RuntimeOptions(tuple(providers or ("CPUExecutionProvider",)), threads)
    limits = ServerLimits(int(max_message_mb * 1e6), upload_seconds)
    service = FrameService(export, options, queue_size, max_streams)
    run(FrameApp(service, limits), host, port, shutdown_seconds)

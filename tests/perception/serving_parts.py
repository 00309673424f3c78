"""Frames, an export and servers for tests of the server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn
from model_parts import IMAGE_SIZE, make_batch, make_model

from bevstack.perception.export.write import write_folder
from bevstack.perception.runtime.manifest import SensorSpec
from bevstack.perception.serving.app import FrameApp
from bevstack.perception.serving.client import Client
from bevstack.perception.serving.server import _listen

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, IMAGE_SIZE[::-1], (), 1, True, True, True)


def write_tiny_export(folder: Path) -> Path:
    """A model with boxes and a map that runs in milliseconds; its weights are random."""
    model = make_model()
    with torch.no_grad():
        model.train()(make_batch())
    write_folder(model, SENSORS, folder)
    return folder


@contextmanager
def served(app: FrameApp) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    listener = _listen("127.0.0.1", 0)
    config = uvicorn.Config(app.asgi(), http="h11", ws="none", lifespan="on", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wait_for(Client(address).is_ready)
        yield address
    finally:
        server.should_exit = True
        thread.join()


WITHOUT_TORCH = """
import signal, sys

# As in a terminal: whoever is started in the background inherits that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "pytorch_lightning"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Blocker())
from bevstack.perception.cli import main
main(["serve", *sys.argv[1:]])
"""


@contextmanager
def serving_process(export: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """``bevstack serve`` as a process in which torch cannot be imported, and its address."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(export), "--port", "0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split(": ")[0]
        wait_for(Client(address).is_ready)
        yield process, address
    finally:
        process.kill()
        process.wait()


def wait_for(condition, seconds: float = 60.0) -> None:
    """Until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def counted(client: Client, name: str) -> float:
    """A number of the server's metrics; 0 if it has not been counted yet."""
    lines = (line.rsplit(" ", 1) for line in client.metrics().splitlines())
    return next((float(value) for key, value in lines if key == f"bevstack_{name}"), 0.0)

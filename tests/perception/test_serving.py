"""The server: what it answers, what it refuses, and how it ends."""

import http.client
import json
import re
import signal
import socket
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import prometheus_client.parser
import pytest
from safetensors.numpy import load, save
from serving_parts import SENSORS, counted, served, serving_process, wait_for, write_tiny_export

from bevstack.datasets.errors import DataError
from bevstack.perception.cli import main
from bevstack.perception.export.example import example_frame
from bevstack.perception.runtime import Runtime, RuntimeOptions
from bevstack.perception.serving.app import FrameApp, ServerLimits
from bevstack.perception.serving.client import Client, ServerError
from bevstack.perception.serving.frames import pack_frame
from bevstack.perception.serving.messages import pack, unpack
from bevstack.perception.serving.service import FrameService

OPTIONS = RuntimeOptions(threads=1)
FRAME = example_frame(SENSORS)
MESSAGE = pack_frame(FRAME)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_tiny_export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def app(export):
    limits = ServerLimits(message_bytes=len(MESSAGE) + 1000, upload_seconds=0.5)
    return FrameApp(FrameService(export, OPTIONS, queue_size=1, max_streams=3), limits)


@pytest.fixture(scope="module")
def address(app):
    with served(app) as address:
        yield address


@pytest.fixture
def gate(app, monkeypatch):
    """Holds the runtime at its next frame until it is set; ``begun`` holds the frames that ran."""
    runtime, gate = app.service._runtime, threading.Event()
    gate.begun = []

    def infer(*arguments, **options):
        gate.begun.append(arguments)
        assert gate.wait(60)
        return Runtime.infer(runtime, *arguments, **options)

    monkeypatch.setattr(runtime, "infer", infer)
    yield gate
    gate.set()


def test_replies_are_what_the_runtime_finds(export, address):
    client, runtime = Client(address), Runtime(export, OPTIONS)
    for frame in (FRAME, replace(FRAME, cameras=()), replace(FRAME, sweeps=(), token="b")):
        found, reply = runtime.run(frame), client.run(frame, ("detection", "map"))
        assert (reply.token, reply.bev_frame) == (frame.token, "ego")
        assert np.array_equal(reply.global_from_bev, found.global_from_bev)
        for name in ("center", "size", "yaw", "velocity", "label"):
            ours, theirs = (getattr(d.boxes, name) for d in (reply.detections, found.detections))
            assert np.array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        assert np.array_equal(reply.detections.score, found.detections.score)
        assert np.array_equal(reply.map.probability, found.map)
        assert reply.map.classes == runtime.manifest.heads["map"].classes
        assert reply.map.grid == runtime.manifest.heads["map"].grid
        assert reply.occupancy is None
        assert reply.seconds.keys() >= {"sensors", "heads", "decode"}
        labels = found.detections.boxes.label
        classes = runtime.manifest.heads["detection"].classes
        assert reply.names(reply.detections.boxes) == [classes[k] for k in labels]


def test_boxes_alone_are_given_where_nothing_else_is_asked_for(address):
    reply = Client(address).run(FRAME)
    assert len(reply.detections)
    assert reply.map is None


def test_a_stream_goes_on_where_its_last_frame_ended(export, address):
    client, runtime, state = Client(address), Runtime(export, OPTIONS), None
    for i in range(3):
        frame = replace(FRAME, timestamp_us=500_000 * i)
        found = runtime.run(frame, state)
        state = found.state
        reply = client.run(frame, stream="a")
        assert np.array_equal(reply.track_ids, found.tracks.track)
        assert np.array_equal(reply.tracks.boxes.center, found.tracks.detections.boxes.center)
        assert np.array_equal(reply.tracks.score, found.tracks.detections.score)
        begun = client.run(frame, ("tracks",), stream=f"b{i}")  # another one every time
        assert begun.detections is None
        assert np.array_equal(begun.track_ids, np.arange(len(begun.track_ids)))
    assert reply.track_ids.max() >= len(reply.track_ids)  # some go on, some are new
    assert client.run(FRAME).tracks is None


def test_the_quietest_stream_is_forgotten(app, address):
    client = Client(address)
    for i in range(4):
        client.run(replace(FRAME, timestamp_us=i), stream=f"{i}")
        client.run(replace(FRAME, timestamp_us=i), stream="busy")
    assert set(app.service._streams) == {"busy", "2", "3"}


def test_a_client_without_bevstack_uses_the_safetensors_library(export, address):
    frame = replace(FRAME, cameras=())
    text = {"token": "1", "scene": "s", "timestamp_us": 0, "cameras": []}
    text |= {"sweeps": [{"timestamp_us": 0}]}
    arrays = {"global_from_ego": np.eye(4), "sweeps.0.points": frame.sweeps[0].load()}
    arrays |= {f"sweeps.0.{name}": np.eye(4) for name in ("ego_from_lidar", "global_from_ego")}
    message = save(arrays, {"format": "bevstack-frame-1", "frame": json.dumps(text)})
    with urllib.request.urlopen(f"{address}/v1/frames", message) as reply:
        boxes = load(reply.read())
    found = Runtime(export, OPTIONS).run(frame).detections
    assert np.array_equal(boxes["detection.center"], found.boxes.center)
    assert np.array_equal(boxes["detection.score"], found.score)


def test_the_model_says_what_it_takes(address):
    content = Client(address).model()
    assert content["manifest"]["sensors"]["num_sweeps"] == 1
    assert content["limits"]["message_bytes"] == len(MESSAGE) + 1000


def without_intrinsic():
    arrays, metadata = unpack(MESSAGE)
    del arrays["cameras.0.intrinsic"]
    return pack(arrays, metadata)


def test_bad_frames_are_refused_with_a_reason_and_the_connection_goes_on(address):
    client = Client(address)
    of_another_size = example_frame(replace(SENSORS, image_size=(64, 32)))
    cases = [
        (b"not a message", None, 400, "malformed", "header"),
        (without_intrinsic(), None, 400, "malformed", "cameras.0.intrinsic"),
        (pack_frame(of_another_size), None, 400, "malformed", "frame"),
        (MESSAGE, ("lanes",), 400, "malformed", "tasks"),
        (MESSAGE, ("tracks",), 400, "malformed", "tasks"),
        (MESSAGE + bytes(1001), None, 413, "too_large", None),
    ]
    before = counted(client, 'errors_total{kind="malformed"}')
    for message, tasks, status, kind, field in cases:
        with pytest.raises(ServerError) as caught:
            client.post(message, tasks)
        error = caught.value
        assert (error.status, error.kind, error.field) == (status, kind, field)
        client.run(FRAME)
    assert counted(client, 'errors_total{kind="malformed"}') == before + 5
    assert counted(client, 'requests_total{status="413"}') >= 1
    assert counted(client, "queue_depth") == 0


def test_a_message_of_unknown_length_is_refused_once_it_is_too_large(address):
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    pieces = iter([MESSAGE, bytes(900), bytes(200)])
    connection.request("POST", "/v1/frames", pieces, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_a_message_that_takes_too_long_loses_its_place(address):
    with half_sent(address) as connection:
        assert b" 408 " in connection.recv(1000)
    Client(address).run(FRAME)


def half_sent(address):
    """A connection on which half of a frame was sent."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/frames HTTP/1.1\r\nHost: a\r\nContent-Length: {len(MESSAGE)}\r\n\r\n"
    connection.sendall(head.encode() + MESSAGE[: len(MESSAGE) // 2])
    return connection


def test_a_full_queue_refuses_and_loses_nothing(address, gate):
    clients = [Client(address) for _ in range(4)]
    frames = [replace(FRAME, token=f"frame {i}") for i in range(3)]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(clients[0].run, frames[0])
        wait_for(lambda: len(gate.begun) == 1)
        second = threads.submit(clients[1].run, frames[1])
        wait_for(lambda: counted(clients[3], "queue_depth") == 1)
        with pytest.raises(ServerError) as caught:
            clients[3].run(FRAME)
        assert (caught.value.status, caught.value.kind) == (503, "busy")
        assert caught.value.retry_after >= 1
        clients[2].patience = 60
        third = threads.submit(clients[2].run, frames[2])
        gate.set()
        tokens = [reply.result().token for reply in (first, second, third)]
    assert tokens == [frame.token for frame in frames]
    assert counted(clients[3], "queue_depth") == 0


def test_a_frame_whose_client_has_gone_is_not_run(address, gate):
    client, gone = Client(address), Client(address)
    before = counted(client, 'errors_total{kind="disconnected"}')
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(client.run, FRAME)
        wait_for(lambda: len(gate.begun) == 1)
        gone._connection.request("POST", "/v1/frames", MESSAGE)
        other = Client(address)
        wait_for(lambda: counted(other, "queue_depth") == 1)
        gone.close()
        wait_for(lambda: counted(other, "queue_depth") == 0)
        gate.set()
        assert running.result().token == FRAME.token
    client.run(FRAME)
    assert len(gate.begun) == 2
    assert counted(client, 'errors_total{kind="disconnected"}') == before + 1


def test_a_failure_of_the_model_is_one_error_and_not_the_end(app, address, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(app.service._runtime, "infer", fail)
        with pytest.raises(ServerError) as caught:
            Client(address).run(FRAME)
    assert (caught.value.status, caught.value.kind) == (500, "internal")
    assert "out of memory" not in caught.value.reason
    Client(address).run(FRAME)


def test_metrics_are_in_the_format_of_prometheus(address):
    client = Client(address)
    client.run(FRAME)
    families = list(prometheus_client.parser.text_string_to_metric_families(client.metrics()))
    kinds = {family.name: family.type for family in families}
    assert kinds["bevstack_requests"] == kinds["bevstack_errors"] == "counter"
    assert kinds["bevstack_request_seconds"] == kinds["bevstack_stage_seconds"] == "histogram"
    assert kinds["bevstack_queue_depth"] == "gauge"
    assert counted(client, "request_seconds_count") >= 1


@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stopped_server_finishes_what_it_has_and_takes_nothing_new(export, stop):
    with serving_process(export, "--threads", "1") as (process, address):
        idle = Client(address)
        idle.run(FRAME)
        with half_sent(address) as connection:
            wait_for(lambda: counted(idle, "queue_depth") == 0)
            process.send_signal(stop)
            wait_for(lambda: not idle.is_ready())
            with pytest.raises(OSError):
                Client(address).run(FRAME)
            connection.sendall(MESSAGE[len(MESSAGE) // 2 :])
            reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert reply.startswith(b"HTTP/1.1 200 ")
        length = int(re.search(rb"content-length: (\d+)", reply)[1])
        assert len(reply.split(b"\r\n\r\n", 1)[1]) == length
        assert process.wait(60) == (0 if stop == signal.SIGTERM else 130)


def test_what_keeps_the_server_from_starting_is_one_sentence(export, tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, reason in (
            ([tmp_path], "bevstack export"),
            ([export, "--port", taken.getsockname()[1]], "another --host or --port"),
            ([export, "--port", 0, "--providers", "[NoSuchProvider]"], "NoSuchProvider"),
            ([export, "--queue_size", "-1"], "queue_size"),
        ):
            with pytest.raises(SystemExit) as caught:
                main(["serve", *map(str, arguments)])
            assert caught.value.code == 2
            assert reason in capfd.readouterr().err


def test_a_client_without_a_server_says_so():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    assert not client.is_ready()
    with pytest.raises(ConnectionRefusedError):
        client.run(FRAME)
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Client("127.0.0.1:8080")


def test_a_frame_that_cannot_be_read_is_not_sent(export):
    def broken():
        raise DataError("sweep.bin is missing")

    with pytest.raises(DataError, match=r"sweep.bin"):
        Client().run(replace(FRAME, sweeps=(replace(FRAME.sweeps[0], load=broken),)))

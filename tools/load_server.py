"""Load `bevstack serve` and count what is lost: two clients, bad messages, one client killed.

    python tools/load_server.py EXPORT [--root ROOT --version v1.0-trainval --split val]
        [--frames 1000] [--threads 2] [--out docs/results/serving]

Starts a server of its own. Two client processes share the frames; every 20th message is malformed,
every 50th larger than the server takes. Halfway through its share one client is killed (SIGKILL)
and another goes on with what it had left. Every reply is compared with what the runtime finds in
this process. With --out, FILE.json and FILE.md are written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.datasets.frame import Frame
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.perception.export.example import example_frame
from bevstack.perception.runtime import Runtime, RuntimeOptions
from bevstack.perception.serving.client import Client, ServerError
from bevstack.perception.serving.frames import pack_frame
from bevstack.perception.serving.messages import pack, unpack
from bevstack.perception.serving.replies import Reply, unpack_reply

DISTINCT = 8  # frames that are sent again and again
SAMPLES = 100  # of the server's memory, evenly over the run


@dataclass(frozen=True)
class Workload:
    """What the clients share: files in a folder, made once."""

    folder: str
    address: str
    good: int  # number of good messages
    bad: int  # number of malformed ones


def prepare(folder: Path, frames: list[Frame], runtime: Runtime) -> tuple[int, int, int]:
    """Write messages and what is expected of them; how many are good, bad, and the largest."""
    sizes = []
    for i, frame in enumerate(frames):
        message, found = pack_frame(frame), runtime.run(frame)
        (folder / f"good_{i}").write_bytes(message)
        sizes.append(len(message))
        expected = {"token": np.array(frame.token)}
        if found.detections is not None:
            expected |= {"center": found.detections.boxes.center, "score": found.detections.score}
        if found.map is not None:
            expected["map"] = found.map
        np.savez(folder / f"expected_{i}.npz", **expected)
    message = (folder / "good_0").read_bytes()
    arrays, metadata = unpack(message)
    bad = [
        message[:-1],
        b"no message at all",
        pack({name: a for name, a in arrays.items() if name != "global_from_ego"}, metadata),
        pack(arrays | {"global_from_ego": np.full((4, 4), np.nan)}, metadata),
        pack(arrays | {"cameras.0.image": np.frombuffer(b"\xff\xd8 no JPEG", np.uint8)}, metadata),
    ]
    for i, content in enumerate(bad):
        (folder / f"bad_{i}").write_bytes(content)
    (folder / "large").write_bytes(bytes(max(sizes) + 200_000))
    return len(frames), len(bad), max(sizes) + 100_000


def client(work: Workload, numbers: list[int], name: str) -> None:
    """Send messages of these numbers, one line of JSON per reply in FOLDER/NAME.jsonl."""
    folder = Path(work.folder)
    connection = Client(work.address, timeout=120, patience=120)
    with (folder / f"{name}.jsonl").open("w", buffering=1) as log:
        for number in numbers:
            kind, file = _message(work, number)
            message, start = (folder / file).read_bytes(), time.perf_counter()
            try:
                reply = unpack_reply(connection.post(message, stream=name))
                expected = np.load(folder / f"{file.replace('good', 'expected')}.npz")
                outcome = "200" if _is_right(reply, expected) else "wrong"
            except ServerError as error:
                outcome = str(error.status)
            except Exception as error:
                outcome = f"lost: {type(error).__name__}"
            milliseconds = 1e3 * (time.perf_counter() - start)
            log.write(json.dumps([number, kind, outcome, round(milliseconds, 3)]) + "\n")


def _message(work: Workload, number: int) -> tuple[str, str]:
    if number % 50 == 25:
        return "oversized", "large"
    if number % 20 == 10:
        return "malformed", f"bad_{number // 20 % work.bad}"
    return "good", f"good_{number % work.good}"


def _is_right(reply: Reply, expected: Any) -> bool:
    right = reply.token == str(expected["token"])
    if reply.detections is not None:
        right &= np.array_equal(reply.detections.boxes.center, expected["center"])
        right &= np.array_equal(reply.detections.score, expected["score"])
    return bool(right)


def outcomes(folder: Path) -> list[list]:
    """All whole lines that the clients have written."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().split("\n")[:-1]]
    return [json.loads(line) for line in lines]


def server_number(connection: Client, name: str) -> float:
    """One number of the server's metrics."""
    lines = (line.rsplit(" ", 1) for line in connection.metrics().splitlines())
    return next(float(value) for key, value in lines if key == name)


def load(work: Workload, frames: int) -> dict[str, Any]:
    """Run the clients; what came back, and the server's memory on the way."""
    folder, spawn = Path(work.folder), multiprocessing.get_context("spawn")

    def start(numbers: list[int], name: str) -> Any:
        process = spawn.Process(target=client, args=(work, numbers, name))
        process.start()
        return process

    shares = {"a": [*range(0, frames, 2)], "b": [*range(1, frames, 2)]}
    clients = {name: start(numbers, name) for name, numbers in shares.items()}
    watch, memory, killed = Client(work.address), [], None
    began = time.perf_counter()
    while any(process.is_alive() for process in clients.values()):
        done = outcomes(folder)
        if len(done) >= len(memory) * frames / SAMPLES:
            memory.append((len(done), server_number(watch, "process_resident_memory_bytes") / 1e6))
        sent = {number for number, *_ in done}
        if killed is None and sum(number in sent for number in shares["b"]) >= frames // 4:
            clients["b"].kill()
            clients["b"].join()
            left = [
                number for number in shares["b"] if number not in {n for n, *_ in outcomes(folder)}
            ]
            killed = left[0]  # the one that was under way, or about to be
            clients["c"] = start(left[1:], "c")
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    memory.append((frames, server_number(watch, "process_resident_memory_bytes") / 1e6))
    return {"seconds": seconds, "memory": memory, "killed": killed, "outcomes": outcomes(folder)}


def summary(run: dict[str, Any], frames: int) -> dict[str, Any]:
    """Figures of a run."""
    counts: dict[str, dict[str, int]] = {}
    for _, kind, outcome, _ in run["outcomes"]:
        counts.setdefault(kind, {}).setdefault(outcome, 0)
        counts[kind][outcome] += 1
    good = [ms for _, kind, outcome, ms in run["outcomes"] if kind == "good" and outcome == "200"]
    answered = sum(n for by in counts.values() for o, n in by.items() if not o.startswith("lost"))
    memory = np.array([megabytes for _, megabytes in run["memory"]])
    return {
        "frames": frames,
        "outcomes": counts,
        "lost": frames - (run["killed"] is not None) - answered,
        "wrong": sum(by.get("wrong", 0) for by in counts.values()),
        "killed_with_its_client": int(run["killed"] is not None),
        "latency_ms": {
            "median": round(float(np.median(good)), 1),
            "p99": round(float(np.percentile(good, 99)), 1),
        },
        "frames_per_second": round(len(good) / run["seconds"], 2),
        # The first tenth fills caches: buffers of the runtime, Python's and the allocator's.
        "memory_mb": {
            "start": round(float(memory[len(memory) // 10]), 1),
            "middle": round(float(memory[len(memory) // 2]), 1),
            "end": round(float(memory[-1]), 1),
            "largest": round(float(memory.max()), 1),
        },
    }


def measure(
    export: Path, frames: list[Frame], count: int, threads: int | None = None
) -> dict[str, Any]:
    """Load a server of its own with these frames; its figures, and how it ended.

    Args:
        export: what ``bevstack export`` wrote.
        frames: what is sent, again and again.
        count: messages in all.
        threads: of the server's runtime.
    """
    with tempfile.TemporaryDirectory() as name:
        runtime = Runtime(export, RuntimeOptions(threads=threads))
        if runtime.manifest.memory is not None:
            raise ValueError("a model with memory answers a frame by what came before it")
        megabytes = sum(graph.bytes for graph in runtime.manifest.graphs.values()) / 1e6
        good, bad, largest = prepare(Path(name), frames, runtime)
        del runtime
        command = [sys.executable, "-m", "bevstack.perception.cli", "serve", str(export)]
        command += ["--port", "0", "--max_message_mb", str(largest / 1e6)]
        command += [] if threads is None else ["--threads", str(threads)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split(": ")[0]
            while server.poll() is None and not Client(address).is_ready():
                time.sleep(0.1)
            figures = summary(load(Workload(name, address, good, bad), count), count)
            figures["model_mb"] = round(megabytes, 1)
            figures["frame_mb"] = round(largest / 1e6 - 0.1, 1)
            figures["queue_depth_at_the_end"] = server_number(
                Client(address), "bevstack_queue_depth"
            )
            server.send_signal(signal.SIGTERM)
            figures["exit_status"] = server.wait(60)
        finally:
            server.kill()
            server.wait()
    return figures


def write(path: Path, figures: dict[str, Any], where: dict[str, str]) -> None:
    """FILE.json and FILE.md."""
    path.with_suffix(".json").write_text(
        json.dumps({"provenance": where, **figures}, indent=2) + "\n"
    )
    memory, latency = figures["memory_mb"], figures["latency_ms"]
    rows = [
        f"| {kind}, answered {outcome} | {number} |"
        for kind, by in figures["outcomes"].items()
        for outcome, number in by.items()
    ]
    text = [
        f"`{where['command']}`, {where['commit']}, {where['date']}, {where['machine']}", "",
        f"| {figures['frames']} messages from two clients | |", "| --- | --- |", *rows,
        f"| size of the model, of the largest frame | {figures['model_mb']} MB, "
        f"{figures['frame_mb']} MB |",
        f"| replies lost | {figures['lost']} |",
        f"| replies of another content | {figures['wrong']} |",
        f"| under way when its client was killed | {figures['killed_with_its_client']} |",
        f"| latency of good frames, queue included: median, p99 | {latency['median']} ms, "
        f"{latency['p99']} ms |",
        f"| good frames per second | {figures['frames_per_second']} |",
        "| resident memory of the server: after a tenth, middle, end, largest | "
        f"{memory['start']}, {memory['middle']}, {memory['end']}, {memory['largest']} MB |",
        f"| exit status after SIGTERM | {figures['exit_status']} |",
    ]  # fmt: skip
    path.with_suffix(".md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("--root", type=Path, help="nuScenes folder; default: made-up frames")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--split", default="val")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sensors = Runtime(options.export).manifest.sensors
    if options.root is None:
        frames = [replace(example_frame(sensors), token=f"{i}") for i in range(DISTINCT)]
    else:
        place = (
            options.root,
            options.version,
            options.split,
            sensors.num_sweeps - 1,
            sensors.frame,
        )
        reader = NuScenesReader(*place)
        frames = [reader[i] for i in range(min(DISTINCT, len(reader)))]
    figures = measure(options.export, frames, options.frames, options.threads)
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        from provenance import provenance  # brings torch, for the machine's description

        write(options.out, figures, provenance(f"python {' '.join(sys.argv)}"))


if __name__ == "__main__":
    main()

"""Send the frames of a dataset to `bevstack serve` and print what comes back: a client's example.

    python tools/send_frames.py http://127.0.0.1:8080 ROOT [--version v1.0-mini] [--split mini_val]
        [--frames 10] [--least_score 0.3]

The frames of a scene are a stream, so that boxes carry the numbers of their tracks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.perception.serving.client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("root", type=Path, help="an indexed nuScenes folder")
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--split")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--least_score", type=float, default=0.3)
    options = parser.parse_args()
    client = Client(options.url, patience=30)
    sweeps = client.model()["manifest"]["sensors"]["num_sweeps"]
    reader = NuScenesReader(options.root, options.version, options.split, sweeps - 1)
    for i in range(min(options.frames, len(reader))):
        frame = reader[i]
        reply = client.run(frame, stream=frame.scene)
        print(f"{frame.scene} {frame.token}: {1e3 * sum(reply.seconds.values()):.0f} ms")
        if reply.tracks is None or reply.track_ids is None:
            continue
        for k in np.flatnonzero(reply.tracks.score >= options.least_score):
            box, score = reply.tracks.boxes[np.array([k])], reply.tracks.score[k]
            (x, y, _), speed = box.center[0], np.linalg.norm(box.velocity)
            print(f"    {reply.names(box)[0]:<20} track {reply.track_ids[k]:<5} score {score:.2f}"
                  f"   x {x:6.1f} m   y {y:6.1f} m   {speed:4.1f} m/s")  # fmt: skip


if __name__ == "__main__":
    main()

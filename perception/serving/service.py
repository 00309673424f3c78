"""The runtime behind a bounded queue: one thread runs it, frame after frame."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ...datasets.errors import DataError
from ...datasets.frame import Frame
from ..export.example import example_frame
from ..runtime import Moment, Runtime, RuntimeOptions, RuntimeState, read_manifest
from .messages import MessageError
from .replies import TASKS, pack_reply


@dataclass(frozen=True)
class Answer:
    """What the runtime made of a frame."""

    message: bytes  # see docs/serving.md
    seconds: dict[str, float]  # by stage


class FrameService:
    """Runs an export on frames, in the order they come in.

    Room is given before a frame is received, so that frames that arrive, wait and run are never
    more than the queue holds, and one. All methods belong to one thread, the event loop's.

    Args:
        folder: what ``bevstack export`` wrote.
        options: of the runtime.
        queue_size: frames that may wait while one runs.
        max_streams: streams whose state is kept; the one that was quiet longest goes first.

    Raises:
        DataError: if the folder is no export.
    """

    def __init__(
        self,
        folder: Path,
        options: RuntimeOptions | None = None,
        queue_size: int = 4,
        max_streams: int = 16,
    ):
        if queue_size < 0:
            raise ValueError(f"queue_size is {queue_size}; expected how many frames may wait")
        if max_streams < 1:
            raise ValueError(f"max_streams is {max_streams}; expected at least 1")
        self.manifest = read_manifest(folder, verify=False)  # loading verifies
        self._folder, self._options = folder, options
        self._capacity, self._admitted = queue_size + 1, 0
        self._runtime: Runtime | None = None
        self._usual_seconds = 0.0  # that a frame takes
        self._streams: OrderedDict[str, RuntimeState] = OrderedDict()  # of the runtime's thread
        self._max_streams = max_streams
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runtime")

    def start(self, on_failure: Callable[[Exception], None]) -> None:
        """Load the model in the runtime's thread.

        Args:
            on_failure: called in that thread with what went wrong.
        """

        def load() -> None:
            try:
                runtime = Runtime(self._folder, self._options)
                state, frame = None, example_frame(self.manifest.sensors)
                for moment in (0, 500_000):  # what these two frames need is compiled then
                    state = runtime.run(replace(frame, timestamp_us=moment), state).state
                self._runtime = runtime
            except Exception as error:
                on_failure(error)

        self._thread.submit(load)

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        return self._runtime is not None

    @property
    def queue_depth(self) -> int:
        """Frames that arrive or wait, without the one that runs."""
        return max(0, self._admitted - 1)

    @property
    def retry_after_seconds(self) -> int:
        """When there should be room again."""
        return max(1, math.ceil(self._usual_seconds * self._admitted))

    def admit(self) -> bool:
        """Take room for a frame, to be given back with :meth:`leave`; False if there is none."""
        if self._admitted >= self._capacity:
            return False
        self._admitted += 1
        return True

    def leave(self) -> None:
        """Give back the room of a frame that is done with."""
        self._admitted -= 1

    def submit(
        self, frame: Frame, tasks: tuple[str, ...] = TASKS, stream: str | None = None
    ) -> Future[Answer]:
        """Run a frame that has been admitted.

        Args:
            frame: what to run.
            tasks: whose results to give.
            stream: whose next frame it is: tracks and the model's memory go on; None for a frame
                on its own.

        Returns:
            The answer; MessageError if the sensors of the frame are not what the model takes.
            Cancelling it takes a frame that has not begun out of the queue.
        """
        return self._thread.submit(self._run, frame, tasks, stream)

    def close(self) -> None:
        """Wait for the frame that runs, and drop what waits."""
        self._thread.shutdown(cancel_futures=True)

    def _run(self, frame: Frame, tasks: tuple[str, ...], stream: str | None) -> Answer:
        runtime, start = self._runtime, time.perf_counter()
        assert runtime is not None
        try:
            sensors = runtime.sensors(frame)
        except MessageError:
            raise
        except (DataError, ValueError) as error:
            raise MessageError("frame", str(error)) from error
        stages = {"sensors": time.perf_counter() - start}
        if stream is None:
            found = runtime.infer(sensors, seconds=stages)
        else:
            moment = Moment(frame.scene, frame.timestamp_us)
            found = runtime.infer(sensors, moment, self._streams.get(stream), stages)
            self._keep(stream, found.state)
        message = pack_reply(found, frame, self.manifest, tasks)
        seconds = time.perf_counter() - start
        weight = 0.1 if self._usual_seconds else 1.0
        self._usual_seconds += weight * (seconds - self._usual_seconds)
        return Answer(message, found.seconds)

    def _keep(self, stream: str, state: RuntimeState | None) -> None:
        if state is not None:
            self._streams[stream] = state
            self._streams.move_to_end(stream)
        while len(self._streams) > self._max_streams:
            self._streams.popitem(last=False)

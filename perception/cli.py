"""The ``bevstack`` command: a verb per job.

Only the chosen verb's module is imported, so that ``bevstack index`` needs no torch.
"""

from __future__ import annotations

import importlib
import os
import sys

VERBS = {
    "synthesize": "write a synthetic nuScenes dataset",
    "index": "index a nuScenes folder",
    "occupancy-labels": "occupancy labels from accumulated LiDAR",
    "train": "train a model",
    "evaluate": "official metrics of a trained model",
    "track": "detections to tracks, official metrics",
    "export": "a trained model as ONNX, checked against the original",
    "infer": "run an exported model on a dataset",
    "dump-frame": "what an exported model is given for a frame, as raw arrays",
    "serve": "an exported model over HTTP",
    "robustness": "corrupted, lost and attacked sensors: one table, one report",
    "corrupt": "write a corrupted nuScenes folder",
    "import": "published checkpoints (MIT BEVFusion, mmdetection3d) to run folders",
    "view": "pictures of frames, truth and detections",
    "doctor": "what this machine has, and which path each operation takes",
}

MODULES = {  # where the verb is no name that Python allows
    "import": "import_weights",
    "occupancy-labels": "occupancy_labels",
    "dump-frame": "dump_frame",
}


def usage() -> str:
    """The text of ``bevstack --help``."""
    lines = [f"  {verb:<16} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: bevstack VERB [options]",
            "",
            *lines,
            "",
            "bevstack VERB --help lists its options.",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. A user's mistake is one sentence and exit status 2, not a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    verb, options = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise SystemExit(f"bevstack has no verb {verb!r}\n\n{usage()}")
    try:
        run_verb(verb, options)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("bevstack", ""):
            raise
        print(f"bevstack {verb} needs the package {package}: `bevstack doctor` says how to get it",
              file=sys.stderr)  # fmt: skip
        raise SystemExit(2) from error
    except ValueError as error:  # DataError and contradictions in a config
        print(f"bevstack {verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run_verb(verb: str, options: list[str]) -> None:
    """Import the verb's module and call it with the parsed options."""
    # Before torch loads OpenMP: a thread that has nothing to do soon gives its core to the data
    # loaders instead of spinning on it for milliseconds, which on few cores costs half the speed.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    module = importlib.import_module(f".commands.{MODULES.get(verb, verb)}", __package__)
    if hasattr(module, "main"):  # a verb with a parser of its own
        module.main(options)
        return
    from jsonargparse import auto_cli

    auto_cli(getattr(module, verb), args=options, prog=f"bevstack {verb}")


if __name__ == "__main__":
    main()

"""What verbs that take an exported model have in common."""

from __future__ import annotations


def with_run_folder(options: list[str]) -> list[str]:
    """Options in which the export given by ``--runtime`` stands for a run folder left out.

    An export holds the config of its run, which says what data there is.
    """
    runtime, positional, value_follows = None, False, False
    for option in options:
        if value_follows:
            runtime = option if value_follows == "--runtime" else runtime
            value_follows = False
        elif option.startswith("--runtime="):
            runtime = option.removeprefix("--runtime=")
        elif option.startswith("-"):
            value_follows = option if "=" not in option else False
        else:
            positional = True
    asks_help = bool({"-h", "--help"} & {*options})
    return options if positional or runtime is None or asks_help else [runtime, *options]

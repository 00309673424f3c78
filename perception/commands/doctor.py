"""``bevstack doctor``: what this machine has."""

from __future__ import annotations


def doctor() -> None:
    """Print what this machine has, which path each operation takes, what to install."""
    from ..doctor import print_report

    print_report()

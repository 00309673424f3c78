"""Where the synthetic world is written from."""

from ..simulated.write import synthesize

__all__ = ["synthesize"]

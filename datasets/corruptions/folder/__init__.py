"""A corrupted nuScenes folder for other people's code: links for what is unchanged."""

from .check import check_folder
from .guard import Guard
from .write import write_folder

__all__ = ["Guard", "check_folder", "write_folder"]

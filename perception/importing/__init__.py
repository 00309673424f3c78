"""Published checkpoints of other code, turned into ours."""

from .bevfusion import translate_weights
from .bevfusion_rules import Source
from .published import read_published
from .run_folder import Task, import_checkpoint

__all__ = ["Source", "Task", "import_checkpoint", "read_published", "translate_weights"]

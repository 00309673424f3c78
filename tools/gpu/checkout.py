"""Import ``bevstack.kernels`` from this checkout, where nothing is installed."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def import_kernels() -> None:
    """Make the folder ``kernels`` importable under its name; an installed bevstack is passed by.

    Only torch, triton and numpy are needed, which bevstack as a whole is not content with.
    """
    if "bevstack" in sys.modules:
        return
    package = ModuleType("bevstack")
    package.__path__ = []
    folder = ROOT / "kernels"
    spec = spec_from_file_location(
        "bevstack.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    kernels = module_from_spec(spec)
    sys.modules |= {"bevstack": package, "bevstack.kernels": kernels}
    spec.loader.exec_module(kernels)
    setattr(package, "kernels", kernels)  # noqa: B010 as an import statement would

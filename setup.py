"""Map the top-level folders to packages under ``bevstack`` (see pyproject.toml for the rest)."""

from setuptools import find_packages, setup

FOLDERS = ("perception", "kernels", "datasets", "configs")
PACKAGES = [p for f in FOLDERS for p in (f, *(f"{f}.{sub}" for sub in find_packages(f)))]

setup(
    packages=[f"bevstack.{package}" for package in PACKAGES],
    package_dir={f"bevstack.{package}": package.replace(".", "/") for package in PACKAGES},
    package_data={
        "bevstack.configs": ["*.yaml", "*/*.yaml"],
        "bevstack.perception.report": ["templates/*", "templates/sections/*"],
    },
)

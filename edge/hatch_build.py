"""Add the files named in pyproject.toml to the wheel, from the repository or from its sdist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Shipped(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files; hatchling calls this before a build. Raises OSError if a file is missing."""
        here = Path(self.root)
        source = here if (here / "gateway").is_dir() else here.parent
        for name in self.config["shipped"]:
            (source / name).stat()
            build_data["force_include"][str(source / name)] = name

"""The projections that a run may name, read from the same files and by the same rules as those of policies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import display_path
from gateway.errors import ConfigError, StartupError
from gateway.policy.library import ProjectionRegistry
from gateway.policy.named_files import PROJECTIONS_FOLDER
from gateway.policy.projection_shapes import MAX_CHARS, MAX_EXEMPLARS
from gateway.policy.projections import PRIMED, PROJECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gateway.errors import ConfigIssue
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar, Projection


@dataclass(frozen=True, slots=True)
class RunLibrary:
    """Projections by name.

    Attributes:
        projections: The projections by name; `primed` has the run's own exemplars if given.
        policies: The policies folder with projection files; None: only shipped projections.
        exemplars_file: The exemplars of `primed`; None: the shipped ones.
        issues: Errors in the files.
    """

    projections: Mapping[str, Projection]
    policies: Path | None
    exemplars_file: Path | None
    issues: Sequence[ConfigIssue]

    @classmethod
    def read(cls, policies: Path | None, exemplars_file: Path | None, exemplars: Iterable[Exemplar]) -> RunLibrary:
        """Read the projections. Blocks. Raises StartupError if `exemplars`, from the file, exceed a policy's limits."""
        library = ProjectionRegistry()
        issues = library.read(policies) if policies is not None else []
        found = dict(library.projections)
        if exemplars_file is not None:
            found[PRIMED.name] = primed = replace(PRIMED, exemplars=tuple(exemplars))
            size = sum(map(len, primed.shown))
            if len(primed.exemplars) > MAX_EXEMPLARS or size > MAX_CHARS:
                raise StartupError(
                    f"{display_path(exemplars_file)} holds {len(primed.exemplars)} exemplars with {size:,} characters: "
                    f"the limits are {MAX_EXEMPLARS} exemplars and {MAX_CHARS:,} characters. Remove some."
                )
        return cls(found, policies, exemplars_file, issues)

    def find(self, name: str) -> Projection:
        """Return a projection. Raises StartupError for an unknown name and ConfigError for errors in its file."""
        if name in self.projections:
            return self.projections[name]
        if self.policies is not None and (self.policies / PROJECTIONS_FOLDER / f"{name}.yaml").is_file():
            raise ConfigError(self.issues)
        close = nearest(name, self.projections)
        where = "--policies DIR" if self.policies is None else f"{display_path(self.policies)}/{PROJECTIONS_FOLDER}"
        hint = f" Did you mean '{close}'?" if close else f" Your own files belong in {where}."
        raise StartupError(f"There is no projection '{name}'; known: {', '.join(self.projections)}.{hint}")

    def with_source(self, setting: Setting) -> Setting:
        """Return the setting with the source of its projection."""
        if setting.mode != "guided":
            return setting
        name = setting.projection.name
        if name == PRIMED.name and self.exemplars_file is not None:
            return replace(setting, exemplars_file=str(self.exemplars_file.absolute()))
        if name not in PROJECTIONS and self.policies is not None:
            return replace(setting, policies=str(self.policies.absolute()))
        return setting

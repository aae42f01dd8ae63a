"""The projections that a run may name: those that policies may, read from the same files by the same rules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import shown
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
    """What `find` finds.

    Attributes:
        projections: by name, `primed` with the run's own exemplars where it has some.
        policies: the folder below which their files stand; None: only those that are shipped.
        exemplars_file: those that `primed` shows; None: it shows its own.
        mistakes: of the files.
    """

    projections: Mapping[str, Projection]
    policies: Path | None
    exemplars_file: Path | None
    mistakes: Sequence[ConfigIssue]

    @classmethod
    def read(cls, policies: Path | None, exemplars_file: Path | None, exemplars: Iterable[Exemplar]) -> RunLibrary:
        """Blocks. Raises StartupError where `exemplars`, those of the file, are more than a policy may show."""
        library = ProjectionRegistry()
        mistakes = library.read(policies) if policies is not None else []
        found = dict(library.projections)
        if exemplars_file is not None:
            found[PRIMED.name] = primed = replace(PRIMED, exemplars=tuple(exemplars))
            size = sum(map(len, primed.shown))
            if len(primed.exemplars) > MAX_EXEMPLARS or size > MAX_CHARS:
                raise StartupError(
                    f"{shown(exemplars_file)} holds {len(primed.exemplars)} exemplars of {size:,} characters: a "
                    f"teacher may be shown {MAX_EXEMPLARS} of {MAX_CHARS:,}. Leave some out."
                )
        return cls(found, policies, exemplars_file, mistakes)

    def find(self, name: str) -> Projection:
        """Raises StartupError where there is none; ConfigError where its file has mistakes."""
        if name in self.projections:
            return self.projections[name]
        if self.policies is not None and (self.policies / PROJECTIONS_FOLDER / f"{name}.yaml").is_file():
            raise ConfigError(self.mistakes)
        close = nearest(name, self.projections)
        where = "--policies DIR" if self.policies is None else f"{shown(self.policies)}/{PROJECTIONS_FOLDER}"
        hint = f" Did you mean '{close}'?" if close else f" Files of your own are looked for in {where}."
        raise StartupError(f"There is no projection '{name}'; known: {', '.join(self.projections)}.{hint}")

    def noted(self, setting: Setting) -> Setting:
        """The same, with where its projection comes from."""
        if setting.mode != "guided":
            return setting
        name = setting.projection.name
        if name == PRIMED.name and self.exemplars_file is not None:
            return replace(setting, exemplars_file=str(self.exemplars_file.absolute()))
        if name not in PROJECTIONS and self.policies is not None:
            return replace(setting, policies=str(self.policies.absolute()))
        return setting

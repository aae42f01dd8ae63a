"""Reader of a run's folder, with validation, for reports, recommendations and length models."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from gateway.errors import StartupError
from gateway.evaluation.record import EXAMPLES, MANIFEST, STAGES, Example, Manifest, StageRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TRUNCATED = "Input data was truncated"
_T = TypeVar("_T", bound=msgspec.Struct)


@dataclass(frozen=True)
class RunRecords:
    """The records of a run.

    Attributes:
        path: The folder.
        examples: One for each setting and question; fewer in an unfinished run.
        remarks: Sentences about missing records.
    """

    path: Path
    manifest: Manifest
    examples: tuple[Example, ...]
    stages: tuple[StageRecord, ...]
    remarks: tuple[str, ...]

    @cached_property
    def by_setting(self) -> Mapping[str, Mapping[str, Example]]:
        """Return the examples by setting name and question id, in file order."""
        found: dict[str, dict[str, Example]] = {}
        for one in self.examples:
            found.setdefault(one.setting, {})[one.question] = one
        return found


class _SettingFields(msgspec.Struct):
    """Fields that every setting of a manifest has."""

    name: str
    form: Literal["chat", "completion"]
    shots: int
    max_tokens: int
    temperature: float


class _Teacher(_SettingFields, tag_field="mode", tag="teacher"): ...


class _Student(_SettingFields, tag_field="mode", tag="student"): ...


class _Guided(_SettingFields, tag_field="mode", tag="guided"):
    tokens: int | Literal["auto"]
    projection: str
    placement: str
    boundary: str


def read_run(path: Path) -> RunRecords:
    """Read a run's folder. Raises StartupError with file and line if a file is missing or invalid."""
    try:
        return _read(path)
    except OSError as error:
        raise StartupError(f"{error.filename or path}: cannot be read: {(error.strerror or 'error').lower()}") from None


def _read(path: Path) -> RunRecords:
    manifest = _manifest(path / MANIFEST)
    remarks: list[str] = []
    if not (path / EXAMPLES).is_file():
        raise StartupError(f"{path / EXAMPLES}: no such file: let `gkt-gateway eval run` finish in this folder first")
    examples = _examples(path / EXAMPLES, manifest, remarks)
    stages: tuple[StageRecord, ...] = ()
    if (path / STAGES).is_file():
        stages = tuple(one for _, one in _lines(path / STAGES, StageRecord, remarks))
    else:
        remarks.append(f"{STAGES} is missing, so the durations of the stages are unknown.")
    return RunRecords(path, manifest, examples, stages, tuple(remarks))


def _manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise StartupError(f"{path}: no such file: name a folder that `gkt-gateway eval run` wrote")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        for setting in manifest.settings:
            msgspec.convert(setting, _Teacher | _Student | _Guided)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: not written by `gkt-gateway eval run`: {error}") from None
    if not manifest.settings:
        raise StartupError(f"{path}: settings is empty")
    return manifest


def _examples(path: Path, manifest: Manifest, remarks: list[str]) -> tuple[Example, ...]:
    settings = {setting["name"] for setting in manifest.settings}
    found: dict[tuple[str, str], Example] = {}
    for number, one in _lines(path, Example, remarks):
        if one.setting not in settings:
            raise StartupError(f"{path}, line {number}: setting {one.setting!r} is not in {MANIFEST}")
        if not 0 <= one.score <= 1:
            raise StartupError(f"{path}, line {number}: score must be between 0 and 1, not {one.score}")
        if not all(amount.is_finite() for amount in (one.cost_usd, one.teacher_usd, one.baseline_usd)):
            raise StartupError(f"{path}, line {number}: money must be a finite number")
        # A live run appends a line for a repeated question: the last line counts.
        found[one.setting, one.question] = one
    if not found:
        raise StartupError(f"{path}: no examples: let `gkt-gateway eval run` finish in this folder first")
    remarks.extend(_missing(manifest, found))
    return tuple(found.values())


def _missing(manifest: Manifest, found: dict[tuple[str, str], Any]) -> Iterator[str]:
    answers = Counter(setting for setting, _ in found)
    for name in dict.fromkeys(setting["name"] for setting in manifest.settings):
        answered = answers[name]
        if answered < manifest.questions:
            yield f"{name}: only {answered} of {manifest.questions} questions have answers."


def _lines(path: Path, kind: type[_T], remarks: list[str]) -> Iterator[tuple[int, _T]]:
    """Yield each line with its number. A line may be incomplete if a run was killed and resumed."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if str(error) != _TRUNCATED:
                raise StartupError(f"{path}, line {number}: not written by `gkt-gateway eval run`: {error}") from None
            remarks.append(f"{path.name}, line {number}: skipped, because a kill truncated it.")

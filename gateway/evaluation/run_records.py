"""A run's folder, read whole and checked: what a report, a recommendation and a model of lengths are made of."""

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
    """What a run left.

    Attributes:
        examples: one for each setting and question; fewer than asked for in a run that is not over.
        remarks: what is missing, in sentences.
    """

    path: Path
    manifest: Manifest
    examples: tuple[Example, ...]
    stages: tuple[StageRecord, ...]
    remarks: tuple[str, ...]

    @cached_property
    def by_setting(self) -> Mapping[str, Mapping[str, Example]]:
        """The examples by the setting's name, and in it by the question's id, each in the order of the file."""
        found: dict[str, dict[str, Example]] = {}
        for one in self.examples:
            found.setdefault(one.setting, {})[one.question] = one
        return found


class _Asked(msgspec.Struct):
    """What must be in a setting of a manifest, whoever is to answer."""

    name: str
    form: Literal["chat", "completion"]
    shots: int
    max_tokens: int
    temperature: float


class _Teacher(_Asked, tag_field="mode", tag="teacher"): ...


class _Student(_Asked, tag_field="mode", tag="student"): ...


class _Guided(_Asked, tag_field="mode", tag="guided"):
    tokens: int | Literal["auto"]
    projection: str
    placement: str
    boundary: str


def read_run(path: Path) -> RunRecords:
    """Raises StartupError, with file and line, where something is not there or is not what a run writes."""
    try:
        return _read(path)
    except OSError as error:
        raise StartupError(f"{error.filename or path}: cannot be read: {(error.strerror or 'error').lower()}") from None


def _read(path: Path) -> RunRecords:
    manifest = _manifest(path / MANIFEST)
    remarks: list[str] = []
    if not (path / EXAMPLES).is_file():
        raise StartupError(
            f"{path / EXAMPLES}: there is no such file: run `gkt-gateway eval run` with this folder to its end first"
        )
    examples = _examples(path / EXAMPLES, manifest, remarks)
    stages: tuple[StageRecord, ...] = ()
    if (path / STAGES).is_file():
        stages = tuple(one for _, one in _lines(path / STAGES, StageRecord, remarks))
    else:
        remarks.append(f"{STAGES} is missing, so nothing is known of how long the stages took.")
    return RunRecords(path, manifest, examples, stages, tuple(remarks))


def _manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise StartupError(f"{path}: there is no such file: name a folder that `gkt-gateway eval run` wrote")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        for setting in manifest.settings:
            msgspec.convert(setting, _Teacher | _Student | _Guided)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: not what `gkt-gateway eval run` writes: {error}") from None
    if not manifest.settings:
        raise StartupError(f"{path}: settings is empty, so nothing was asked")
    return manifest


def _examples(path: Path, manifest: Manifest, remarks: list[str]) -> tuple[Example, ...]:
    settings = {setting["name"] for setting in manifest.settings}
    found: dict[tuple[str, str], Example] = {}
    for number, one in _lines(path, Example, remarks):
        if one.setting not in settings:
            raise StartupError(f"{path}, line {number}: setting {one.setting!r} is none of {MANIFEST}")
        if not 0 <= one.score <= 1:
            raise StartupError(f"{path}, line {number}: score must be between 0 and 1, and is {one.score}")
        if not all(amount.is_finite() for amount in (one.cost_usd, one.teacher_usd, one.baseline_usd)):
            raise StartupError(f"{path}, line {number}: money must be a number")
        # A live run adds a line for what it asked again: the last one holds.
        found[one.setting, one.question] = one
    if not found:
        raise StartupError(f"{path}: holds no examples: run `gkt-gateway eval run` with this folder to its end first")
    remarks.extend(_missing(manifest, found))
    return tuple(found.values())


def _missing(manifest: Manifest, found: dict[tuple[str, str], Any]) -> Iterator[str]:
    answers = Counter(setting for setting, _ in found)
    for name in dict.fromkeys(setting["name"] for setting in manifest.settings):
        answered = answers[name]
        if answered < manifest.questions:
            yield f"{name}: only {answered} of {manifest.questions} questions are answered."


def _lines(path: Path, kind: type[_T], remarks: list[str]) -> Iterator[tuple[int, _T]]:
    """Each line with its number. One may be half: a run was killed while it wrote, and went on."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if str(error) != _TRUNCATED:
                raise StartupError(f"{path}, line {number}: not what `gkt-gateway eval run` writes: {error}") from None
            remarks.append(f"{path.name}, line {number}: it was cut short by a kill, and is left out.")

"""A run's folder: one process at a time writes there, and what it holds is of one data set and one pair."""

from __future__ import annotations

import fcntl
import hashlib
import time
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import msgspec
import orjson

from gateway.errors import StartupError
from gateway.evaluation.record import (
    EXAMPLES,
    GENERATIONS,
    MANIFEST,
    STAGES,
    Example,
    Manifest,
    StageRecord,
    write_lines,
)
from gateway.policy.projections import PROJECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from gateway.evaluation.question import Question
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

StageName: TypeAlias = Literal["teacher", "student", "live"]
_LOCK = ".lock"


class RunFolder:
    """A context manager around the folder; it is made where it is not there.

    Raises StartupError on entering where another process runs in it, or where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        """What `run.json` says; None where nothing has run here."""
        self.examples: dict[tuple[str, str], Example] = {}
        """By setting and question."""
        self.stages: list[StageRecord] = []

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / _LOCK).open("ab")
        except OSError as error:
            raise StartupError(f"{self.path} cannot be written: {error.strerror}. Name another folder.") from error
        try:
            # The system lets go of it when the process ends, however it does.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StartupError(
                f"Another process runs in {self.path}. Wait until it has ended, or name another folder."
            ) from error
        try:
            self._load()
        except StartupError:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    @property
    def generations(self) -> Path:
        """Where the texts are kept."""
        return self.path / GENERATIONS

    def check(self, wanted: Manifest, questions: Sequence[Question]) -> None:
        """Raises StartupError where what is asked now does not fit to what was asked before.

        More settings may come, and more questions behind those that were asked. Prices may change where every setting
        that is here is asked for again: its examples are made anew.
        """
        was = self.manifest
        if was is None:
            return
        pairs = (
            ("the teacher", was.teacher, wanted.teacher),
            ("the student", was.student, wanted.student),
            ("the path", _path(was), _path(wanted)),
            ("the data set", was.data, wanted.data),
        )
        differs = [f"{name} was {before}, and is {now}" for name, before, now in pairs if before != now]
        if was.questions > wanted.questions:
            differs.append(f"it had {was.questions} questions, and has {wanted.questions}: raise --limit")
        elif digest(questions[: was.questions]) != was.data_sha256:
            differs.append("the questions, their order or their answers are others")
        differs += [f"{what} is other" for what in _shown_otherwise(was, wanted)]
        if was.prices != wanted.prices and self._others(wanted):
            differs.append("prices are others, and not every setting of the folder is asked for again")
        if differs:
            raise StartupError(f"{self.path} is of another run: {'; '.join(differs)}. Name another folder.")

    def begin(self, wanted: Manifest, questions: Sequence[Question]) -> None:
        """Note what is asked now, beside what was asked before. Raises as `check` does."""
        self.check(wanted, questions)
        was = self.manifest
        if was is not None:
            wanted = msgspec.structs.replace(
                wanted,
                settings=[*self._others(wanted), *wanted.settings],
                created=was.created,
                student_look=wanted.student_look or was.student_look,
            )
        self._keep(wanted)

    def _others(self, wanted: Manifest) -> list[dict[str, Any]]:
        """The settings that were asked for, and are not now."""
        names = {setting["name"] for setting in wanted.settings}
        return [one for one in self.manifest.settings if one["name"] not in names] if self.manifest else []

    def note_student(self, look: dict[str, Any]) -> None:
        """Keep what is known of the student now that it was asked."""
        assert self.manifest is not None, "begin() comes first"
        self._keep(msgspec.structs.replace(self.manifest, student_look=look))

    def add(self, example: Example) -> None:
        """An example that cannot be made anew from texts: it is on disk when this returns."""
        self.examples[example.setting, example.question] = example
        _append(self.path / EXAMPLES, example)

    def note(self, example: Example) -> None:
        """An example that can be made anew from texts: `write_examples` writes it."""
        self.examples[example.setting, example.question] = example

    def write_examples(self, questions: Sequence[Question]) -> None:
        """All examples anew: by setting, and within it in the data's order."""
        assert self.manifest is not None, "begin() comes first"
        keys = ((setting["name"], question.id) for setting in self.manifest.settings for question in questions)
        write_lines(self.path / EXAMPLES, [self.examples[key] for key in keys if key in self.examples])

    def add_stage(self, stage: StageName, setting: str, calls: int, seconds: float, concurrency: int) -> None:
        """What a stage took; one in which nobody was asked is none."""
        if not calls:
            return
        at = int(time.time())
        took = StageRecord(stage=stage, setting=setting, calls=calls, seconds=seconds, concurrency=concurrency, at=at)
        self.stages.append(took)
        _append(self.path / STAGES, took)

    def seconds_per_call(self, stage: str) -> float | None:
        """How long a call took here, beside others, over all sittings; None where none was made."""
        told = [one for one in self.stages if one.stage == stage and one.calls]
        return sum(one.seconds for one in told) / sum(one.calls for one in told) if told else None

    def _keep(self, manifest: Manifest) -> None:
        self.manifest = manifest
        file = self.path / MANIFEST
        new = file.with_name(file.name + ".new")
        new.write_bytes(orjson.dumps(orjson.loads(msgspec.json.encode(manifest)), option=orjson.OPT_INDENT_2) + b"\n")
        new.replace(file)

    def _load(self) -> None:
        file = self.path / MANIFEST
        if file.exists():
            try:
                self.manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
            except msgspec.DecodeError as error:
                raise StartupError(f"{file} is no run's: {error}. Name another folder.") from error
        for line in _lines(self.path / EXAMPLES):
            example = msgspec.convert(line, Example, strict=False)
            self.examples[example.setting, example.question] = example
        lines = list(_lines(self.path / STAGES))
        self.stages = [msgspec.convert({"concurrency": 0} | line, StageRecord) for line in lines]
        if any("concurrency" not in line for line in lines):
            # Of a measurement that was made before there was this command: others read what it says.
            write_lines(self.path / STAGES, self.stages)


def digest(questions: Iterable[Question]) -> str:
    """SHA-256 of the questions and their answers, in their order; how they are scored has no part in it."""
    found = hashlib.sha256()
    for one in questions:
        found.update(orjson.dumps((one.id, one.text, one.answer, one.options), option=orjson.OPT_APPEND_NEWLINE))
    return found.hexdigest()


def shown(setting: Setting, exemplars: Sequence[Exemplar]) -> str:
    """A hash of what models are shown beside the question: exemplars, the words of the projection, and what is kept.

    A rule that chooses m is in it as well.
    """
    projection = setting.projection
    asked: tuple[object, ...] = ()
    if setting.mode == "guided":
        asked = (projection.instruction, projection.introduction, projection.exemplars)
        skip = projection.skip
        more = (
            projection.system,
            skip and ([one.text for one in skip.patterns], skip.tokens),
            None if projection.name in PROJECTIONS else projection.teacher_may_finish,
        )
        # Folders of a time when projections had no more are read still.
        asked += more if any(one is not None for one in more) else ()
        asked += setting.auto.facts if setting.auto is not None else ()
    return hashlib.blake2b(orjson.dumps((exemplars[: setting.shots], asked)), digest_size=8).hexdigest()


def _shown_otherwise(was: Manifest, wanted: Manifest) -> list[str]:
    before = {setting["name"]: setting.get("shown") for setting in was.settings}
    other = [one for one in wanted.settings if before.get(one["name"], one.get("shown")) != one.get("shown")]
    return [
        f"what '{one['name']}' shows the models{', or how it chooses m,' if one.get('tokens') == 'auto' else ''}"
        for one in other
    ]


def _path(manifest: Manifest) -> str:
    return "live" if manifest.live else "staged"


def _append(file: Path, record: msgspec.Struct) -> None:
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(record) + b"\n")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Those that are whole: a kill may have cut one short. What comes next begins a line of its own."""
    if not file.exists():
        return
    whole = file.read_bytes()
    if whole and not whole.endswith(b"\n"):
        with file.open("ab") as lines:
            lines.write(b"\n")
    for line in whole.splitlines():
        try:
            yield orjson.loads(line)
        except orjson.JSONDecodeError:
            continue

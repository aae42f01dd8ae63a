"""A run's folder: a lock for one process, and checks that all records are of one data set and one pair."""

from __future__ import annotations

import fcntl
import hashlib
import time
from contextlib import ExitStack
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
    replace_file,
    stored_lines,
    write_lines,
)
from gateway.evaluation.scoring import metric_of
from gateway.evaluation.setting import REQUEST_PARAMETERS
from gateway.policy.projections import PROJECTIONS
from gateway.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gateway.evaluation.record import Question
    from gateway.evaluation.setting import Setting
    from gateway.policy.projections import Exemplar

StageName: TypeAlias = Literal["teacher", "student", "live"]
_LOCK = ".lock"


class RunFolder:
    """A run's folder, created if needed. Entering raises StartupError if it is in use or cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        """Contents of `run.json`; None in a new folder."""
        self.examples: dict[tuple[str, str], Example] = {}
        """The examples by setting and question."""
        self._teachers: dict[str, str] = {}
        self.stages: list[StageRecord] = []

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # questions may be private
            lock = (self.path / _LOCK).open("ab")
        except OSError as error:
            raise StartupError(f"{self.path} cannot be written: {error.strerror}. Name another folder.") from error
        with ExitStack() as stack:
            stack.enter_context(lock)
            try:
                # The kernel releases the lock when the process ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                message = f"Another process runs in {self.path}. Wait for its end, or name another folder."
                raise StartupError(message) from error
            self._load()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def generations(self) -> Path:
        return self.path / GENERATIONS

    def check(self, manifest: Manifest, questions: Sequence[Question]) -> None:
        """Raise StartupError if a run contradicts the earlier runs of the folder.

        More settings are allowed, and more questions after the earlier ones. If the run includes every setting of the
        folder, prices may change: the examples are then computed again.
        """
        previous = self.manifest
        if previous is None:
            return
        pairs = (
            ("the teacher", previous.teacher, manifest.teacher),
            ("the student", previous.student, manifest.student),
            ("the path", _path(previous), _path(manifest)),
            ("the data set", previous.data, manifest.data),
        )
        differs = [f"{name} was {before} and is now {now}" for name, before, now in pairs if before != now]
        if previous.questions > manifest.questions:
            differs.append(f"it had {previous.questions} questions and now has {manifest.questions}: raise --limit")
        elif digest(questions[: previous.questions]) != previous.data_sha256:
            differs.append("the questions, their order or their answers differ")
        shown = {setting["name"]: setting.get("shown") for setting in previous.settings}
        differs += [
            f"the prompt of '{one['name']}' differs"
            for one in manifest.settings
            if shown.get(one["name"], one.get("shown")) != one.get("shown")
        ]
        if previous.prices != manifest.prices and self._other_settings(manifest):
            differs.append("prices differ, and the run leaves out some settings of the folder")
        if previous.metric != manifest.metric and (manifest.live or self._other_settings(manifest)):
            differs.append(f"its scores are {previous.metric} and would now be {manifest.metric}")
        if differs:
            raise StartupError(f"{self.path} holds another run: {'; '.join(differs)}. Name another folder.")

    def begin(self, manifest: Manifest, questions: Sequence[Question]) -> None:
        """Add a run to the manifest. Raises as `check` does."""
        self.check(manifest, questions)
        previous = self.manifest
        if previous is not None:
            manifest = msgspec.structs.replace(
                manifest,
                settings=[*self._other_settings(manifest), *manifest.settings],
                created=previous.created,
                student_look=manifest.student_look or previous.student_look,
            )
        if manifest.metric == "preference":
            self._teachers = teachers_of(manifest.settings)
        self._store(manifest)

    def _other_settings(self, manifest: Manifest) -> list[dict[str, Any]]:
        """Return the settings of the manifest that the new run leaves out."""
        names = {setting["name"] for setting in manifest.settings}
        return [one for one in self.manifest.settings if one["name"] not in names] if self.manifest else []

    def set_student_state(self, state: dict[str, Any]) -> None:
        """Store the student's capabilities, known after its first call."""
        assert self.manifest is not None, "begin() comes first"
        self._store(msgspec.structs.replace(self.manifest, student_look=state))

    def is_teacher(self, setting: str) -> bool:
        """Return whether a setting is the teacher alone."""
        settings = self.manifest.settings if self.manifest is not None else []
        return any(one["name"] == setting and one["mode"] == "teacher" for one in settings)

    def reference(self, setting: str, question: str, answer: str) -> str | None:
        """Return the answer of the teacher alone with which a setting's `answer` is compared, in a run of preferences.

        It is `answer` itself for the teacher alone. None: the teacher has no answer, or nothing is compared.
        """
        teacher = self._teachers.get(setting)
        if teacher in {None, setting}:
            return answer if teacher == setting else None
        example = self.examples.get((str(teacher), question))
        return None if example is None or not example.text else example.text

    def lacks_reference(self, setting: str, question: str) -> bool:
        """Return whether the teacher has no answer with which a setting's would be compared."""
        return setting in self._teachers and self.reference(setting, question, "") is None

    def add(self, example: Example) -> None:
        """Append an example that cannot be computed from texts; it is on disk on return."""
        self.keep(example)
        _append(self.path / EXAMPLES, example)

    def keep(self, example: Example) -> None:
        """Keep an example that can be computed from texts; `write_examples` writes it."""
        self.examples[example.setting, example.question] = example

    def write_examples(self, questions: Sequence[Question]) -> None:
        """Write all examples, by setting and within it in the order of the data set."""
        assert self.manifest is not None, "begin() comes first"
        keys = ((setting["name"], question.id) for setting in self.manifest.settings for question in questions)
        write_lines(self.path / EXAMPLES, [self.examples[key] for key in keys if key in self.examples])

    def add_stage(self, stage: StageName, setting: str, calls: int, seconds: float, concurrency: int) -> None:
        """Append the duration of a stage; a stage without calls is skipped."""
        if not calls:
            return
        at = int(time.time())
        record = StageRecord(stage=stage, setting=setting, calls=calls, seconds=seconds, concurrency=concurrency, at=at)
        self.stages.append(record)
        _append(self.path / STAGES, record)

    def seconds_per_call(self, stage: str) -> float | None:
        """Return the mean seconds of a concurrent call over all sessions; None without calls."""
        records = [one for one in self.stages if one.stage == stage and one.calls]
        return sum(one.seconds for one in records) / sum(one.calls for one in records) if records else None

    def _store(self, manifest: Manifest) -> None:
        self.manifest = manifest
        replace_file(self.path / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")

    def _load(self) -> None:
        file = self.path / MANIFEST
        if file.exists():
            try:
                self.manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
            except msgspec.DecodeError as error:
                raise StartupError(f"{file} is not a run's manifest: {error}. Name another folder.") from error
        for line in stored_lines(self.path / EXAMPLES):
            self.keep(msgspec.convert(line, Example, strict=False))
        self.stages = [msgspec.convert(line, StageRecord) for line in stored_lines(self.path / STAGES)]


def new_manifest(
    data: str, questions: Sequence[Question], settings: list[dict[str, Any]], *, seed: int, live: bool, **facts: Any
) -> Manifest:
    """Return the manifest of a run that begins now. `facts`: as `manifest_facts` of a pair."""
    return Manifest(
        data=data,
        data_sha256=digest(questions),
        questions=len(questions),
        settings=settings,
        seed=seed,
        live=live,
        metric=metric_of(questions),
        version=__version__,
        created=int(time.time()),
        **facts,
    )


def teachers_of(settings: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the name of the teacher alone with equal requests, by the name of each setting. Raises StartupError."""
    found: dict[tuple[Any, ...], str] = {}
    keys = {one["name"]: tuple(one.get(name) for name in REQUEST_PARAMETERS) for one in settings}
    for one in settings:
        if one["mode"] == "teacher":
            found.setdefault(keys[one["name"]], one["name"])
    for name, key in keys.items():
        if key not in found:
            raise StartupError(
                f"'{name}' would be compared with the teacher alone, which the run lacks for these requests: add "
                "teacher to --mode, or with --gateway a route of mode teacher."
            )
    return {name: found[key] for name, key in keys.items()}


def digest(questions: Iterable[Question]) -> str:
    """Return the SHA-256 of the questions, answers and options in order; the scorers are not included."""
    sha256 = hashlib.sha256()
    for one in questions:
        fields = (one.id, one.text, one.answer, one.options, *((one.messages,) if one.messages else ()))
        sha256.update(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
    return sha256.hexdigest()


def shown_hash(setting: Setting, exemplars: Sequence[Exemplar]) -> str:
    """Return a hash of what models read besides the question: exemplars, projection, and kept parts."""
    projection = setting.projection
    inputs: tuple[object, ...] = ()
    if setting.mode == "guided":
        inputs = (projection.instruction, projection.introduction, projection.exemplars)
        skip = projection.skip
        more = (
            projection.system,
            skip and ([one.text for one in skip.patterns], skip.tokens),
            None if projection.name in PROJECTIONS else projection.teacher_may_finish,
        )
        # Keeps the hashes of folders from before projections had these fields.
        inputs += more if any(one is not None for one in more) else ()
    return hashlib.blake2b(orjson.dumps((exemplars[: setting.shots], inputs)), digest_size=8).hexdigest()


def _path(manifest: Manifest) -> str:
    return "live" if manifest.live else "staged"


def _append(file: Path, record: msgspec.Struct) -> None:
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(record) + b"\n")

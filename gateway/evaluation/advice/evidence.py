"""The settings of a run's folder with their results, on the questions that all of them answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.yaml_source import display_path
from gateway.errors import StartupError
from gateway.evaluation.advice.repricing import PromptCaching, Repricing, repriced
from gateway.evaluation.setting import SAMPLING
from gateway.evaluation.summary import summarize
from gateway.policy.projections import PROJECTIONS
from gateway.pricing import Price

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from gateway.evaluation.record import Manifest, RunRecords
    from gateway.evaluation.summary import SettingSummary

# Settings with less than this part of the questions are left out, since only common questions count.
_MIN_SHARE = 0.5
# With more truncated answers, the teacher alone is a weak baseline.
_MAX_TRUNCATED = 0.02


class Evidence(NamedTuple):
    """k settings on the same n questions, from folders (`sources`) with their manifests.

    Attributes:
        request_form: Form, shots and sampling of requests, which a policy does not choose.
        candidates: The settings with this request form, and the teacher alone with other forms.
        teacher, student: Indices of the two alone with this request form.
        teachers: Indices of all configurations of the teacher alone. Guidance is compared with each.
        notes: Sentences about excluded records.
    """

    sources: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    request_form: str
    questions: tuple[str, ...]
    candidates: tuple[SettingSummary, ...]
    teacher: int
    student: int
    teachers: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def is_selectable(self, index: int) -> bool:
        """Return whether a policy can have the setting: it cannot change the form of requests."""
        return request_form_of(self.candidates[index].setting) == self.request_form


def evidence_of(
    run: RunRecords,
    request_form: str | None = None,
    prices: Mapping[str, Price] | None = None,
    caching: PromptCaching = PromptCaching(),  # noqa: B008  immutable
) -> Evidence:
    """Return the settings with one request form (`request_form_of`; None: the only one), on their common questions.

    The teacher alone with other forms and exemplars is a candidate, too. It is a baseline.

    `prices` by role replace those of the run; all costs are then computed from the tokens. Input beyond that of the
    teacher alone without exemplars is equal for all requests: `caching` determines what it costs.

    Raises StartupError if there are several forms and none is chosen, or the teacher or the student alone is missing.
    Measured cache reads that are needed and missing are also one.
    """
    run.require_accuracy()
    settings = _settings_with(run, request_form)
    form, path = request_form_of(settings[0]), display_path(run.path)
    requested = {one["mode"] for one in settings}
    max_questions = max(len(run.by_setting.get(one["name"], ())) for one in settings)
    others = (one for one in run.manifest.settings if one["mode"] == "teacher" and one not in settings)
    settings += [one for one in others if all(one[name] == settings[0][name] for name in SAMPLING)]
    counts = {one["name"]: len(run.by_setting.get(one["name"], ())) for one in settings}
    notes = []
    if missing := [name for name, count in counts.items() if not count]:
        notes.append(f"left out without answers: {'; '.join(missing)}")
    too_few = {name: count for name, count in counts.items() if 0 < count < _MIN_SHARE * max_questions}
    notes += [f"left out, with {count} of {max_questions} questions: {name}" for name, count in too_few.items()]
    kept = [one for one in settings if counts[one["name"]] and one["name"] not in too_few]
    found = [run.by_setting[one["name"]] for one in kept]
    common = tuple(name for name in (found[0] if found else {}) if all(name in one for one in found))
    if found and len(common) < max_questions:
        notes.append(f"the settings answered different questions: only the {len(common)} common ones count")
    if found and not common:
        raise StartupError(f"{path}: no question has answers in all settings: let `gkt-gateway eval run` finish")
    candidates = [
        summarize(one, [examples[name] for name in common]) for one, examples in zip(kept, found, strict=True)
    ]
    if failed := sum(example.error is not None for one in candidates for example in one.examples):
        notes.append(f"{failed} answers failed and count as wrong: `gkt-gateway eval run` repeats them")
    teacher, student, teachers = _references(candidates, path, form, requested)
    if prices:
        by_role = {role: Price.of_tokens(*usd) for role, usd in run.manifest.prices.items()} | dict(prices)
        if missing := [role for role in ("teacher", "student") if role not in by_role]:
            raise StartupError(f"{path} has no price of the {missing[0]}: add --price {missing[0]}=IN,OUT")
        plain = min(teachers, key=lambda index: (candidates[index].setting["shots"], index != teacher))
        repricing = Repricing(by_role, caching, candidates[plain], candidates[teacher])
        candidates, cache_notes = repriced(candidates, repricing, path)
        notes += cache_notes
    notes += _weak_baselines(candidates, teachers)
    return Evidence((path,), (run.manifest,), form, common, tuple(candidates), teacher, student, teachers, tuple(notes))


def combine(several: Sequence[Evidence]) -> Evidence:
    """Merge the questions of several runs for their common settings. Raises StartupError if they share none."""
    by_name = [{one.name: one for one in evidence.candidates} for evidence in several]
    shared = [one for one in several[0].candidates if all(one.name in found for found in by_name)]
    dropped = sorted({name for found in by_name for name in found} - {one.name for one in shared})
    notes = [note for evidence in several for note in evidence.notes]
    if dropped:
        notes.append(f"left out, because some folders lack them: {'; '.join(dropped)}")
    candidates = [
        summarize(one.setting, [example for found in by_name for example in found[one.name].examples]) for one in shared
    ]
    references = _references(candidates, "the settings that all folders share", several[0].request_form)
    return Evidence(
        tuple(source for evidence in several for source in evidence.sources),
        tuple(manifest for evidence in several for manifest in evidence.manifests),
        several[0].request_form,
        tuple(name for evidence in several for name in evidence.questions),
        *(tuple(candidates), *references, tuple(notes)),
    )


def _weak_baselines(candidates: Sequence[SettingSummary], teachers: Collection[int]) -> Iterator[str]:
    """Yield sentences about configurations of the teacher alone that are weak or missing, which favors guidance."""
    for one in (candidates[index] for index in teachers):
        if one.cut > _MAX_TRUNCATED * one.n:
            yield (
                f"weak baseline: {one.cut} of {one.n} answers of '{one.name}' are truncated, more than "
                f"{_MAX_TRUNCATED:.0%}: measure the teacher with a larger --max-tokens"
            )
    if any(_has_exemplars(one) for one in candidates) and not any(candidates[at].setting["shots"] for at in teachers):
        yield (
            "missing baseline: guidance has exemplars, and no teacher alone has them in its prompt: measure it with "
            "--mode teacher --shots N"
        )


def _has_exemplars(one: SettingSummary) -> bool:
    shipped = PROJECTIONS.get(one.setting.get("projection", ""))
    return one.guided and bool(one.setting.get("exemplars") or (shipped and shipped.exemplars))


def request_form_of(setting: Mapping[str, Any]) -> str:
    """Return form, shots and sampling in words; the caller chooses them, not a policy."""
    shots = f", {setting['shots']} shots" if setting["shots"] else ""
    sampling = f", temperature {setting['temperature']:g}" if setting["temperature"] else ""
    sampling += "".join(f", {name} {setting[name]:g}" for name in ("top_p", "seed") if setting[name] is not None)
    return f"{setting['form']}{shots}{sampling}"


def _settings_with(run: RunRecords, request_form: str | None) -> list[dict[str, Any]]:
    forms: dict[str, list[dict[str, Any]]] = {}
    for setting in run.manifest.settings:
        forms.setdefault(request_form_of(setting), []).append(setting)
    listed, path = " | ".join(f"'{form}'" for form in forms), display_path(run.path)
    if request_form is not None and request_form not in forms:
        raise StartupError(f"{path} has no settings with the request form '{request_form}': --asked {listed}")
    if request_form is None and len(forms) > 1:
        raise StartupError(f"{path} has {len(forms)} request forms, and callers use one: choose --asked {listed}")
    return forms[request_form if request_form is not None else next(iter(forms))]


def _references(
    candidates: Sequence[SettingSummary], where: str, form: str, requested: Collection[str] = ()
) -> tuple[int, int, tuple[int, ...]]:
    """Return the indices of teacher and student alone, at their largest common limit, and of all teachers alone.

    The two have the request form `form`. `requested`: modes of the run.
    """
    limits: dict[str, dict[int, int]] = {"teacher": {}, "student": {}}
    for index, one in enumerate(candidates):
        if not one.guided and request_form_of(one.setting) == form:
            limits[one.setting["mode"]][one.setting["max_tokens"]] = index
    if role := next((role for role, found in limits.items() if not found), None):
        if role in requested:
            raise StartupError(
                f"{where}: the run is not finished: the {role} alone has no answers yet ({form}), and guidance is "
                "compared with it. Repeat the `gkt-gateway eval run` to resume"
            )
        raise StartupError(
            f"{where}: the {role} alone has no answers ({form}), and guidance is compared with it: run "
            f"`gkt-gateway eval run` on this folder with mode {role} among its settings"
        )
    common_limits = limits["teacher"].keys() & limits["student"].keys()
    teacher, student = (found[max(common_limits or found)] for found in limits.values())
    return teacher, student, tuple(index for index, one in enumerate(candidates) if one.mode == "teacher")

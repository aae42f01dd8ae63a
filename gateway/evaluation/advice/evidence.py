"""What a run's folder says of its settings, on the questions that all of them answered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gateway.config.yaml_source import shown
from gateway.errors import StartupError
from gateway.pricing import Price, cost_usd, total_usd

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from decimal import Decimal

    from gateway.evaluation.record import Example, Manifest
    from gateway.evaluation.run_records import RunRecords

Numbers = NDArray[np.float64]

# A setting with fewer of the questions than this part would take the others' evidence away.
_ENOUGH = 0.5


@dataclass(frozen=True, slots=True)
class CandidateSetting:
    """One setting that may be recommended. `setting` is as `Setting.as_dict`; examples and costs are in one order."""

    setting: Mapping[str, Any]
    examples: tuple[Example, ...]
    costs_usd: tuple[Decimal, ...]

    @property
    def name(self) -> str:
        return str(self.setting["name"])

    @property
    def guided(self) -> bool:
        return bool(self.setting["mode"] == "guided")

    @property
    def correct(self) -> int:
        """How many were right."""
        return sum(one.correct for one in self.examples)

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.examples)

    @property
    def cost_usd(self) -> Decimal:
        """USD, the mean answer."""
        return total_usd(*self.costs_usd) / len(self.costs_usd)

    @property
    def teacher_tokens(self) -> float:
        """What the teacher wrote for the mean answer."""
        return sum(one.teacher_output_tokens for one in self.examples) / len(self.examples)

    @property
    def student_tokens(self) -> float:
        """What the student wrote for the mean answer."""
        return sum(one.student_output_tokens for one in self.examples) / len(self.examples)


@dataclass(frozen=True)
class Evidence:
    """Settings that were asked the same questions, n of them, in the same way.

    Attributes:
        sources: the folders, and `manifests` what was asked there.
        asked: how the questions were put: a policy does not choose it.
        candidates: k of them, in the run's order.
        teacher, student: the places of the two alone among the candidates, that the others are held against.
        notes: what of the folder does not count, and why.
    """

    sources: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    asked: str
    questions: tuple[str, ...]
    candidates: tuple[CandidateSetting, ...]
    teacher: int
    student: int
    notes: tuple[str, ...] = ()

    @cached_property
    def correct(self) -> Numbers:
        """(n, k): 1 where right, else 0."""
        return np.array([[one.correct for one in found.examples] for found in self.candidates], float).T

    @cached_property
    def cost(self) -> Numbers:
        """(n, k): USD, each answer; what is shown of it is summed up from the Decimals."""
        return np.array([[float(usd) for usd in found.costs_usd] for found in self.candidates], float).T


def evidence_of(run: RunRecords, asked: str | None = None, prices: Mapping[str, Price] | None = None) -> Evidence:
    """The settings of one way of asking, on the questions that they have in common.

    Args:
        asked: which way, in `asked_of`'s words; None: the only one.
        prices: by role, in the place of the run's; then every cost is anew from the tokens. What a teacher has read
            beyond what it reads of the question alone, the exemplars and words of a projection, is the same for each
            request and counts as cached.

    Raises:
        StartupError: there are several ways and none was chosen, or a teacher or a student alone is missing.
    """
    settings = _of_one_way(run, asked)
    way = asked_of(settings[0])
    notes = []
    if missing := [one["name"] for one in settings if not run.by_setting.get(one["name"])]:
        notes.append(f"not run, and left out: {'; '.join(missing)}")
    run_settings = [one for one in settings if run.by_setting.get(one["name"])]
    most = max((len(run.by_setting[one["name"]]) for one in run_settings), default=0)
    kept = [one for one in run_settings if len(run.by_setting[one["name"]]) >= _ENOUGH * most]
    notes += [
        f"left out, with {len(run.by_setting[one['name']])} of {most} questions: {one['name']}"
        for one in run_settings
        if one not in kept
    ]
    found = [run.by_setting[one["name"]] for one in kept]
    common = tuple(name for name in (found[0] if found else {}) if all(name in one for one in found))
    if found and len(common) < most:
        notes.append(f"the settings did not answer the same questions: only the {len(common)} that all have count")
    if found and not common:
        raise StartupError(
            f"{shown(run.path)}: no question was answered in all settings: let `gkt-gateway eval run` finish"
        )
    answered = [(one, tuple(run.by_setting[one["name"]][name] for name in common)) for one in kept]
    candidates = [
        CandidateSetting(one, examples, tuple(each.cost_usd for each in examples)) for one, examples in answered
    ]
    if failed := sum(example.error is not None for one in candidates for example in one.examples):
        notes.append(f"{failed} answers failed, and count as wrong: `gkt-gateway eval run` asks for them again")
    teacher, student = _references(candidates, shown(run.path), way, meant={one["mode"] for one in settings})
    if prices:
        by_role, alone = _prices(run, prices), candidates[teacher].examples
        candidates = [replace(one, costs_usd=_costs(one.examples, by_role, alone)) for one in candidates]
    return Evidence((shown(run.path),), (run.manifest,), way, common, tuple(candidates), teacher, student, tuple(notes))


def together(several: Sequence[Evidence]) -> Evidence:
    """All questions as one set: the settings that each of them has. Raises StartupError where they share none."""
    by_name = [{one.name: one for one in evidence.candidates} for evidence in several]
    shared = [one for one in several[0].candidates if all(one.name in found for found in by_name)]
    dropped = sorted({name for found in by_name for name in found} - {one.name for one in shared})
    alike = [one for one in shared if len({repr(found[one.name].setting.get("auto")) for found in by_name}) == 1]
    names = [one.name for one in alike]
    notes = [note for evidence in several for note in evidence.notes]
    if dropped:
        notes.append(f"not in every folder, and left out: {'; '.join(dropped)}")
    if otherwise := [one.name for one in shared if one not in alike]:
        notes.append(f"chosen by another rule in each folder, and left out: {'; '.join(otherwise)}")
    candidates = [
        CandidateSetting(
            by_name[0][name].setting,
            tuple(example for found in by_name for example in found[name].examples),
            tuple(usd for found in by_name for usd in found[name].costs_usd),
        )
        for name in names
    ]
    sources = tuple(source for evidence in several for source in evidence.sources)
    teacher, student = _references(candidates, "the settings that all folders share", several[0].asked)
    return Evidence(
        sources,
        tuple(manifest for evidence in several for manifest in evidence.manifests),
        several[0].asked,
        tuple(name for evidence in several for name in evidence.questions),
        tuple(candidates),
        teacher,
        student,
        tuple(notes),
    )


def asked_of(setting: Mapping[str, Any]) -> str:
    """How a question is put, in words: form, shots and sampling, which are the caller's and no policy's."""
    shots = f", {setting['shots']} shots" if setting["shots"] else ""
    drawn = f", temperature {setting['temperature']:g}" if setting["temperature"] else ""
    drawn += "".join(f", {name} {setting[name]:g}" for name in ("top_p", "seed") if setting[name] is not None)
    return f"{setting['form']}{shots}{drawn}"


def _of_one_way(run: RunRecords, asked: str | None) -> list[dict[str, Any]]:
    ways: dict[str, list[dict[str, Any]]] = {}
    for setting in run.manifest.settings:
        ways.setdefault(asked_of(setting), []).append(setting)
    listed = " | ".join(f"'{way}'" for way in ways)
    if not ways:
        raise StartupError(f"{shown(run.path)} has no settings: run `gkt-gateway eval run` on this folder")
    if asked is not None and asked not in ways:
        raise StartupError(f"{shown(run.path)} has no questions that were asked as '{asked}': --asked {listed}")
    if asked is None and len(ways) > 1:
        raise StartupError(
            f"{shown(run.path)} asks in {len(ways)} ways, and callers do in one: choose --asked {listed}"
        )
    return ways[asked if asked is not None else next(iter(ways))]


def _prices(run: RunRecords, prices: Mapping[str, Price]) -> Mapping[str, Price]:
    """By role."""
    whole = {role: Price.of_tokens(*usd) for role, usd in run.manifest.prices.items()} | dict(prices)
    if missing := [role for role in ("teacher", "student") if role not in whole]:
        raise StartupError(f"{shown(run.path)} has no price of the {missing[0]}: say --price {missing[0]}=IN,OUT too")
    return whole


def _costs(examples: Sequence[Example], prices: Mapping[str, Price], alone: Sequence[Example]) -> tuple[Decimal, ...]:
    """alone: the teacher's, of the same questions."""
    return tuple(
        total_usd(
            cost_usd(
                prices["teacher"],
                one.teacher_input_tokens,
                one.teacher_output_tokens,
                max(0, one.teacher_input_tokens - own.teacher_input_tokens),
            ),
            cost_usd(prices["student"], one.student_input_tokens, one.student_output_tokens),
        )
        for one, own in zip(examples, alone, strict=True)
    )


def _references(
    candidates: Sequence[CandidateSetting], where: str, way: str, meant: Collection[str] = ()
) -> tuple[int, int]:
    """The teacher and the student alone: with the largest limit that both have, else each with its largest.

    meant: the modes that the run was to ask for. One of these that is missing is still to come.
    """
    limits: dict[str, dict[int, int]] = {"teacher": {}, "student": {}}
    for place, one in enumerate(candidates):
        if not one.guided:
            limits[one.setting["mode"]][one.setting["max_tokens"]] = place
    for role, found in limits.items():
        if not found and role in meant:
            raise StartupError(
                f"{where}: the run is not finished: the {role} alone has not answered yet ({way}), and guidance is "
                "held against it. The same `gkt-gateway eval run` goes on where it stopped"
            )
        if not found:
            raise StartupError(
                f"{where}: the {role} alone did not answer ({way}), and guidance is held against it: run `gkt-gateway "
                f"eval run` on this folder with mode {role} among its settings"
            )
    both = limits["teacher"].keys() & limits["student"].keys()
    teacher, student = (found[max(both or found)] for found in limits.values())
    return teacher, student

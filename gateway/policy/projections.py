"""A projection is data: what to ask the teacher, and what its text is to the student.

The paper's F (section 2) in its three forms (section 4.2): cutoff, concise, hint.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.schema import Placement

SLOT = "{guidance}"
"""Where in an introduction the guidance goes."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A question and how it is to be answered, shown to the teacher alone."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What to ask the teacher, and what to make of its text.

    name: as policies write it.
    instruction: put before the text of the last user message, for the teacher alone; None: ask as the caller did.
    exemplars: turns of a chat that the teacher alone sees before the caller's: it begins as they do.
    teacher_may_finish: a teacher that ended by itself has answered, so the student is not asked.
    default_placement: where the guidance stands unless a policy says otherwise: "prefix" opens the answer with it,
        "context" puts it into the student's prompt, where the caller does not see it; "input" does so too, without
        an introduction.
    introduction: how placement "context" puts the guidance to the student; `{guidance}` stands for it.

    Raises ValueError when `introduction` does not hold `{guidance}` exactly once.
    """

    name: str
    instruction: str | None
    teacher_may_finish: bool
    default_placement: Placement
    introduction: str
    exemplars: tuple[Exemplar, ...] = ()

    def __post_init__(self) -> None:
        if self.introduction.count(SLOT) != 1:
            raise ValueError(f"projection {self.name}: introduction must hold {SLOT} exactly once")


CUTOFF = Projection(
    name="cutoff",
    instruction=None,
    teacher_may_finish=True,
    default_placement="prefix",
    introduction="An expert's answer begins like this:\n{guidance}\n\nGive the whole answer, from its beginning.",
)
CONCISE = Projection(
    name="concise",
    instruction="Provide the answer in a brief manner:",
    teacher_may_finish=True,
    default_placement="prefix",
    introduction="An expert's brief answer begins like this:\n{guidance}\n\nGive the whole answer, from its beginning.",
)
HINT = Projection(
    name="hint",
    instruction="Provide a brief hint for the question:",
    teacher_may_finish=False,
    default_placement="context",
    introduction="Hint: {guidance}",
)

PROJECTIONS: Mapping[str, Projection] = MappingProxyType({p.name: p for p in (CUTOFF, CONCISE, HINT)})
"""Every projection a policy may name, by name."""

"""A projection is data: what to ask the teacher, and what its text is to the student.

The paper's F (section 2) in its three forms (section 4.2): cutoff, concise, hint.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gateway.messages import with_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.policy.schema import Placement

_SLOT = "{guidance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """What to ask the teacher, and what to make of its text.

    name: as policies write it.
    instruction: put before the text of the last user message, for the teacher alone; None: ask as the caller did.
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

    def __post_init__(self) -> None:
        if self.introduction.count(_SLOT) != 1:
            raise ValueError(f"projection {self.name}: introduction must hold {_SLOT} exactly once")


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


def teacher_messages(projection: Projection, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat to put to the teacher: the caller's, with the projection's instruction (paper, section 4.2).

    messages: OpenAI chat messages; content is text or a list of parts. The instruction goes before the text of the
    last user message, a blank between; into its first text part, or a new one before parts without text. A chat
    without a user message gets one. The input is not changed; untouched values are shared with the result.
    """
    if projection.instruction is None:
        return [dict(message) for message in messages]
    return with_text(messages, before=projection.instruction)


def place_in_context(
    projection: Projection, messages: Sequence[Mapping[str, Any]], guidance: str
) -> list[dict[str, Any]]:
    """The chat to put to the student in placement "context": the guidance ends the last user message.

    It is introduced by `projection.introduction`, after an empty line; in the last text part, or a new one after
    parts without text. A chat without a user message gets one. Empty guidance leaves the chat as it is. The input
    is not changed; untouched values are shared with the result.
    """
    if not guidance:
        return [dict(message) for message in messages]
    # Not str.format: a template may hold other braces.
    return with_text(messages, after=projection.introduction.replace(_SLOT, guidance))


def place_in_input(messages: Sequence[Mapping[str, Any]], guidance: str) -> list[dict[str, Any]]:
    """The chat to put to the student in placement "input": the guidance ends the last user message, as it is.

    For encoder-decoder students (paper, section 4.3): the encoder reads question and guidance as one text, and what
    the decoder writes is the whole answer; the guidance is no part of it. It stands on a line of its own; else as
    `place_in_context`.
    """
    if not guidance:
        return [dict(message) for message in messages]
    return with_text(messages, after=guidance, gap="\n")


def teacher_prompt(projection: Projection, prompt: str) -> str:
    """The raw prompt to put to the teacher: the caller's, behind the projection's instruction.

    Where in it the question stands is the caller's secret: the instruction goes before all of it, a blank between.
    """
    return f"{projection.instruction} {prompt}" if projection.instruction is not None else prompt


def place_before_prompt(projection: Projection, prompt: str, guidance: str) -> str:
    """The raw prompt to put to the student in placement "context": before it the guidance, introduced as in a chat.

    Not behind it, for there the answer begins. Empty guidance leaves the prompt as it is.
    """
    if not guidance:
        return prompt
    return f"{projection.introduction.replace(_SLOT, guidance)}\n\n{prompt}"


def place_behind_prompt(prompt: str, guidance: str) -> str:
    """The raw prompt to put to the student in placement "input": the guidance ends it, and is no part of the answer.

    The paper's prompt ends in "A:", so a blank parts the two, unless white space does.
    """
    return f"{prompt} {guidance}" if prompt and not prompt[-1].isspace() else prompt + guidance

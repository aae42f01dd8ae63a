"""What a projection makes of a request: what the teacher reads, and where its text stands for the student. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.policy.projections import SLOT
from gateway.protocol.messages import RULES, with_system, with_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.policy.projections import Projection


def teacher_messages(projection: Projection, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat to put to the teacher: the caller's, with the projection's instruction (paper, section 4.2).

    messages: OpenAI chat messages; content is text or a list of parts. The instruction goes before the text of the
    last user message, a blank between; into its first text part, or a new one before parts without text. A chat
    without a user message gets one. Its system text goes before that of the system message that the chat begins with,
    or into a new one; exemplars stand behind the system messages that it begins with, and nowhere in a chat that has
    nothing else. The input is not changed; untouched values are shared with the result.
    """
    result = [dict(message) for message in messages]
    if projection.instruction is not None:
        result = with_text(result, before=projection.instruction)
    if projection.system is not None:
        result = with_system(result, projection.system)
    if not projection.exemplars:
        return result
    begin = next((at for at, message in enumerate(result) if message.get("role") not in RULES), None)
    if begin is None:
        return result  # it would end with an answer
    exemplars = [
        {"role": role, "content": text}
        for one in projection.exemplars
        for role, text in (("user", one.question), ("assistant", one.answer))
    ]
    return [*result[:begin], *exemplars, *result[begin:]]


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
    return with_text(messages, after=projection.introduction.replace(SLOT, guidance))


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
    Exemplars and a system text have no part in it: how this caller tells a question from an answer is not known.
    """
    return f"{projection.instruction} {prompt}" if projection.instruction is not None else prompt


def place_before_prompt(projection: Projection, prompt: str, guidance: str) -> str:
    """The raw prompt to put to the student in placement "context": before it the guidance, introduced as in a chat.

    Not behind it, for there the answer begins. Empty guidance leaves the prompt as it is.
    """
    if not guidance:
        return prompt
    return f"{projection.introduction.replace(SLOT, guidance)}\n\n{prompt}"


def place_behind_prompt(prompt: str, guidance: str) -> str:
    """The raw prompt to put to the student in placement "input": the guidance ends it, and is no part of the answer.

    The paper's prompt ends in "A:", so a blank parts the two, unless white space does.
    """
    return f"{prompt} {guidance}" if prompt and not prompt[-1].isspace() else prompt + guidance

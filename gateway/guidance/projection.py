"""Apply a projection to a request: build the teacher's input, and place the guidance in the student's. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.policy.projections import SLOT
from gateway.protocol.messages import RULES, with_system, with_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.policy.projections import Projection


def teacher_messages(projection: Projection, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the teacher's chat: the caller's chat with the projection's instruction (paper, section 4.2).

    The instruction is put before the text of the last user message, separated by a space. It is added to the first text
    part, or to a new part before parts without text. A chat without a user message gets one. The system text is put
    before that of the first system message, or into a new one. Exemplars follow the leading system messages. A chat of
    system messages alone gets no exemplars. The input is not changed; untouched values are shared with the result.
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
        return result  # the chat would end with an answer
    exemplars = [
        {"role": role, "content": text}
        for one in projection.exemplars
        for role, text in (("user", one.question), ("assistant", one.answer))
    ]
    return [*result[:begin], *exemplars, *result[begin:]]


def place_in_context(
    projection: Projection, messages: Sequence[Mapping[str, Any]], guidance: str
) -> list[dict[str, Any]]:
    """Return the student's chat for placement "context": the guidance ends the last user message.

    `projection.introduction` introduces it, after an empty line, in the last text part or in a new part after parts
    without text. A chat without a user message gets one. Empty guidance leaves the chat unchanged. The input is not
    changed; untouched values are shared with the result.
    """
    if not guidance:
        return [dict(message) for message in messages]
    # Not str.format: a template may contain other braces.
    return with_text(messages, after=projection.introduction.replace(SLOT, guidance))


def place_in_input(messages: Sequence[Mapping[str, Any]], guidance: str) -> list[dict[str, Any]]:
    """Return the student's chat for placement "input": the guidance ends the last user message, without introduction.

    For encoder-decoder students (paper, section 4.3): the encoder reads question and guidance as one text. The
    decoder's output is the whole answer; the guidance is not part of it. The guidance is on its own line. Otherwise
    this works like `place_in_context`.
    """
    if not guidance:
        return [dict(message) for message in messages]
    return with_text(messages, after=guidance, gap="\n")


def teacher_prompt(projection: Projection, prompt: str) -> str:
    """Return the teacher's raw prompt: the projection's instruction, a space, and the caller's prompt.

    The position of the question in the prompt is unknown, so the instruction precedes all of it. Exemplars and a system
    text are not used, because the caller's format of questions and answers is unknown.
    """
    return f"{projection.instruction} {prompt}" if projection.instruction is not None else prompt


def place_before_prompt(projection: Projection, prompt: str, guidance: str) -> str:
    """Return the student's raw prompt for placement "context": the introduced guidance, then the prompt.

    The guidance does not follow the prompt, because the answer begins there. Empty guidance leaves the prompt
    unchanged.
    """
    if not guidance:
        return prompt
    return f"{projection.introduction.replace(SLOT, guidance)}\n\n{prompt}"


def place_behind_prompt(prompt: str, guidance: str) -> str:
    """Return the student's raw prompt for placement "input": the guidance ends it, and is not part of the answer.

    The paper's prompt ends in "A:", so a space separates the two, unless the prompt ends in whitespace.
    """
    return f"{prompt} {guidance}" if prompt and not prompt[-1].isspace() else prompt + guidance

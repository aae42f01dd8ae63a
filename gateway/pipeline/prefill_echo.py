"""Remove the caller's prefill (the beginning of the answer) from a reply in which the engine repeats it. Sans-io.

Engines differ. vLLM, SGLang and TGI return the continuation alone. Some builds of llama.cpp repeat the caller's last
message in a JSON reply and not in a stream. LiteLLM does so for Anthropic; Mistral repeats the message. The gateway's
reply has the continuation alone, as JSON and as a stream. A caller that sends `echo: true` gets the engine's text
unchanged: vLLM and llama.cpp then repeat the beginning in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.guidance.seam import SeamJoin
from gateway.protocol.capabilities.continuation import NATIVE_MODES
from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.policy.plan import StudentPlan
    from gateway.protocol.body import Json
    from gateway.protocol.requests import CompletionRequest


class PrefillEcho:
    """Remove the repeated beginning `text` from each choice of one reply.

    `echo` states whether the engine repeats it. None: unknown, so only a text too long to be a coincidence is removed.
    """

    def __init__(self, text: str, *, echo: bool | None) -> None:
        self._text = text
        self._echo = echo
        self._seams: dict[int, SeamJoin] = {}

    def reply(self, reply: Json) -> None:
        """Change a complete reply in place."""
        for choice in reply["choices"]:
            self._change(choice, choice["message"], ended=True)

    def chunk(self, chunk: Json) -> None:
        """Change one chunk of a stream in place. Text that may belong to the beginning is moved to a later chunk."""
        for choice in chunk["choices"]:
            choice["delta"] = choice.get("delta") or {}
            self._change(choice, choice["delta"], ended=bool(choice.get("finish_reason")))

    def _change(self, choice: Json, message: Json, *, ended: bool) -> None:
        index = choice.get("index", 0)
        seam = self._seams.get(index)
        if seam is None:
            self._seams[index] = seam = SeamJoin(self._text, echo=self._echo)
        text = text_of(message.get("content"))
        rest = seam.feed(text or "") + (seam.finish() if ended else "")
        if rest or text is not None:
            message["content"] = rest


def prefill_echo(student: StudentPlan, request: CompletionRequest, *, stream: bool) -> PrefillEcho | None:
    """Return the filter for the caller's beginning; None if there is none, or nothing to remove."""
    if isinstance(request, TextRequest) or request.body.get("echo") is True:
        return None
    last = request.messages[-1]
    if last["role"] != "assistant" or not (text := text_of(last.get("content"))) or not text.strip():
        return None
    known = student.continuation
    echo = known.echo if known is not None and known.mode in NATIVE_MODES else None
    if stream and echo and known is not None and known.mode != "prefix":
        # A JSON reply contained the repetition. llama.cpp streams without it, so a short text may be a coincidence.
        echo = None
    return None if echo is False else PrefillEcho(text, echo=echo)

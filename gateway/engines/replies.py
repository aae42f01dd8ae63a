"""Reads replies of OpenAI-compatible servers, and names what is wrong with them. Performs no I/O."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from gateway.errors import EngineFailed, EngineProtocolError, EngineUnreachable, EngineUnsupported
from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.anthropic import MessagesFields

MAX_NAME_CHARS = 200
"""The size limit of a name that an engine reports, such as that of its model."""
_HASH_BYTES = 8
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_STOPS = frozenset({"eos", "eos_token", "stop_sequence"})  # names of `stop`: Together's and TGI's


def finish_reason(reported: str) -> str:
    """Return OpenAI's name of an engine's finish reason. An unknown reason counts as a cut, `length`.

    Receipts, logs and metrics contain the name, so that no other text of an engine may be one.
    """
    if reported in _FINISH_REASONS:
        return reported
    return "stop" if reported in _STOPS else "length"


def short_name(reported: str) -> str:
    """Return a name of bounded size. The end of a longer name is replaced by a hash, so that names stay different."""
    if len(reported) <= MAX_NAME_CHARS:
        return reported
    digest = blake2b(reported.encode(errors="replace"), digest_size=_HASH_BYTES).hexdigest()
    return f"{reported[: MAX_NAME_CHARS - len(digest) - 3]}...{digest}"


def first_choice(reply: Any) -> Json:
    """Return the first choice of an OpenAI reply; empty if there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def message_text(reply: Json) -> str | None:
    """Return the text of the first choice; None if it has no text."""
    return text_of((first_choice(reply).get("message") or {}).get("content"))


def is_reasoning(reply: Json) -> bool:
    """Return whether the first choice has reasoning instead of an answer, as text or in a separate field."""
    message = first_choice(reply).get("message") or {}
    if text := text_of(message.get("content")):
        return text.lstrip().startswith("<think>")
    return bool(message.get("reasoning_content") or message.get("reasoning"))


def listed_model(reply: Any, model: str | None) -> tuple[Json, list[Json]]:
    """Return the entry of a model in a reply of /models, and all entries. Another model's entry is the first one."""
    models = reply.get("data") if isinstance(reply, dict) else None
    entries = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
    return next((entry for entry in entries if entry.get("id") == model), entries[0] if entries else {}), entries


def context_of(entry: Json, entries: list[Json]) -> int | None:
    """Return `max_model_len` of a model, or that of its parent: vLLM lists none for LoRA adapters."""
    parent: Json = next((one for one in entries if one.get("id") == entry.get("parent")), {})
    lengths = (one.get("max_model_len") for one in (entry, parent))
    return next((length for length in lengths if type(length) is int and length > 0), None)


def bad_reply(engine: str, what: str) -> EngineProtocolError:
    """Return the error for a reply that breaks the protocol. `what` is the object of the message."""
    return EngineProtocolError(f"Engine '{engine}' sent {what}.", engine=engine)


def closed_early(engine: str) -> EngineFailed:
    """Return the error for a stream without its end."""
    return EngineFailed(f"Engine '{engine}' closed the stream before its end.", engine=engine)


def aborted(engine: str) -> EngineFailed:
    """Return the error for an answer that the engine aborted. It may be asleep, so that another engine is next."""
    error = EngineFailed(f"Engine '{engine}' aborted the answer.", engine=engine)
    error.retryable = False
    return error


def unsupported(engine: str, predicate: str, status: int = 422, param: str | None = None) -> EngineUnsupported:
    """Return the error for a request that is not sent, since the engine would reject it with `status`."""
    return EngineUnsupported(f"Engine '{engine}' {predicate}", engine=engine, status_sent=status, param=param)


def reject_foreign_tool(engine: str, own: MessagesFields, body: Json, reads: frozenset[str]) -> None:
    """Raise EngineUnsupported if a request to /v1/messages has a tool that only Anthropic's models know."""
    if (found := own.unsupported(body, reads)) is not None:
        at, kind = found
        predicate = (
            f"does not know tools of type '{kind}' ('{at}'). Use a model of Anthropic, or define the tool with "
            "'input_schema'."
        )
        raise unsupported(engine, predicate, 400, at)


def connection_failed(engine: str, *, connected: bool) -> EngineUnreachable:
    """Return the error for a lost connection. Its message omits the cause, which may contain the address."""
    error = EngineUnreachable(f"The connection to engine '{engine}' failed or was closed.", engine=engine)
    error.may_have_run = error.connected = connected
    return error

"""How text-generation-inference refuses: JSON with an `error_type`, or plain text for a body it cannot read."""

from __future__ import annotations

from typing import TypedDict


class ErrorBody(TypedDict):
    """TGI's JSON error body."""

    error: str
    error_type: str


class TgiError(Exception):
    """A refusal in TGI's words: `status` is the HTTP status, `error_type` TGI's name for it."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message

    @property
    def body(self) -> ErrorBody:
        """The JSON body, which `/generate_stream` sends as an event under status 200."""
        return {"error": self.message, "error_type": self.error_type}


class UnreadableBody(Exception):
    """A body that TGI's web framework refuses before TGI sees it: plain text, not JSON."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def invalid(message: str) -> TgiError:
    """422: a value is outside of TGI's limits."""
    return TgiError(422, "validation", f"Input validation error: {message}")


def overloaded() -> TgiError:
    """429: too many requests in flight. TGI does not queue them and sends no Retry-After."""
    return TgiError(429, "overloaded", "Model is overloaded")


def generation_failed(cause: str) -> TgiError:
    """424: the model failed."""
    return TgiError(424, "generation", f"Request failed during generation: {cause}")


def incomplete() -> TgiError:
    """500: the generation ended without a reason to end."""
    return TgiError(500, "incomplete_generation", "Incomplete generation")


def in_stream(error: TgiError) -> TgiError:
    """The error as TGI reports it in a stream: there, an incomplete generation has a name of its own."""
    if error.error_type != "incomplete_generation":
        return error
    return TgiError(500, "incomplete_generation_stream", "Incomplete generation stream")


def template_failed(cause: str) -> TgiError:
    """422: the chat template refused the messages."""
    return TgiError(422, "template_error", f"Template error: {cause}")


def tool_refused(cause: str) -> TgiError:
    """422: something about tools."""
    return TgiError(422, "tool_error", f"Tool error: {cause}")

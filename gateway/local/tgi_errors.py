"""The errors of text-generation-inference (TGI): JSON with an `error_type`, or plain text for an unreadable body."""

from __future__ import annotations

from typing import TypedDict


class ErrorBody(TypedDict):
    """TGI's JSON error body."""

    error: str
    error_type: str


class TgiError(Exception):
    """An error as TGI reports it: `status` is the HTTP status, `error_type` TGI's name of the error."""

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
    """A body that TGI's web framework rejects, with an answer in plain text instead of JSON."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def invalid(message: str) -> TgiError:
    """Return the error 422 for a value outside of TGI's limits."""
    return TgiError(422, "validation", f"Input validation error: {message}")


def overloaded() -> TgiError:
    """Return the error 429 for too many requests in flight. TGI does not queue them and sends no Retry-After."""
    return TgiError(429, "overloaded", "Model is overloaded")


def generation_failed(cause: str) -> TgiError:
    """Return the error 424 for a failure of the model."""
    return TgiError(424, "generation", f"Request failed during generation: {cause}")


def incomplete() -> TgiError:
    """Return the error 500 for a generation without a finish reason."""
    return TgiError(500, "incomplete_generation", "Incomplete generation")


def in_stream(error: TgiError) -> TgiError:
    """Return the error as TGI reports it in a stream, where an incomplete generation has another name."""
    if error.error_type != "incomplete_generation":
        return error
    return TgiError(500, "incomplete_generation_stream", "Incomplete generation stream")


def template_failed(cause: str) -> TgiError:
    """Return the error 422 for messages that the chat template rejects."""
    return TgiError(422, "template_error", f"Template error: {cause}")


def tool_rejected(cause: str) -> TgiError:
    """Return the error 422 for a request with tools."""
    return TgiError(422, "tool_error", f"Tool error: {cause}")

"""The errors of text-generation-inference (TGI): JSON with an `error_type`, or plain text for an unreadable body."""

from __future__ import annotations


class TgiError(Exception):
    """An error as TGI reports it: `status` is the HTTP status, `error_type` TGI's name of the error."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message

    @property
    def body(self) -> dict[str, str]:
        """The JSON body, which `/generate_stream` sends as an event under status 200."""
        return {"error": self.message, "error_type": self.error_type}


class UnreadableBody(Exception):
    """A body that TGI's web framework rejects, with an answer in plain text instead of JSON."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


# The HTTP status and the message of each error_type. TGI does not queue requests, and sends no Retry-After.
_ERRORS = {
    "validation": (422, "Input validation error: {}"),
    "template_error": (422, "Template error: {}"),
    "tool_error": (422, "Tool error: {}"),
    "generation": (424, "Request failed during generation: {}"),
    "overloaded": (429, "Model is overloaded"),
    "incomplete_generation": (500, "Incomplete generation"),
    "incomplete_generation_stream": (500, "Incomplete generation stream"),
}


def failure(error_type: str, cause: str = "") -> TgiError:
    """Return the error of an error_type."""
    status, message = _ERRORS[error_type]
    return TgiError(status, error_type, message.format(cause))


def invalid(cause: str) -> TgiError:
    """Return the error for a value outside of TGI's limits."""
    return failure("validation", cause)


def in_stream(error: TgiError) -> TgiError:
    """Return the error as TGI reports it in a stream, where an incomplete generation has another name."""
    return error if error.error_type != "incomplete_generation" else failure("incomplete_generation_stream")

"""The retry flag of each error."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError, RequestError, ServiceError, StartupError
from tests.docs.test_docs import error_types, page

SEEN = [error for error in error_types() if "label" in vars(error) and not issubclass(error, StartupError)]


@pytest.mark.parametrize("error", SEEN, ids=lambda error: error.__name__)
def test_whether_to_retry_is_in_the_documentation(error: type[GatewayError]) -> None:
    """Each label is in the line of the document that applies to it."""
    lines = {
        verdict: line
        for line in page("docs/clients.md").splitlines()
        for verdict in ("true", "false", "nothing")
        if line.startswith(f"| `x-should-retry`: {verdict} |")
    }
    meant = {True: "true", False: "false", None: "nothing"}[error.retry]
    assert [verdict for verdict, line in lines.items() if f"`{error.label}`" in line] == [meant]


def test_request_errors_are_not_retried_and_service_errors_are() -> None:
    """Errors with a wait have a Retry-After."""
    assert (RequestError.retry, ServiceError.retry, GatewayError.retry) == (False, True, None)
    assert ServiceError("later").retry_after_s is not None

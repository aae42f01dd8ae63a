"""Of each error, whether the same request may succeed later."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError, RequestError, ServiceError, StartupError
from tests.docs.test_docs import error_types, page

SEEN = [error for error in error_types() if "label" in vars(error) and not issubclass(error, StartupError)]


@pytest.mark.parametrize("error", SEEN, ids=lambda error: error.__name__)
def test_whether_to_retry_is_in_the_documentation(error: type[GatewayError]) -> None:
    """Each label stands in the one line that is true of it."""
    told = {
        verdict: line
        for line in page("docs/errors.md").splitlines()
        for verdict in ("true", "false", "nothing")
        if line.startswith(f"| `x-should-retry`: {verdict} |")
    }
    meant = {True: "true", False: "false", None: "nothing"}[error.retry]
    assert [verdict for verdict, line in told.items() if f"`{error.label}`" in line] == [meant]


def test_a_mistake_of_the_callers_is_not_retried_and_a_wait_is() -> None:
    """Those who can only wait are told for how long."""
    assert (RequestError.retry, ServiceError.retry, GatewayError.retry) == (False, True, None)
    assert ServiceError("later").retry_after_s is not None

"""The log's redaction filter hides every text that has the shape of a secret."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gateway.telemetry.logs import without_secrets

SLIPPED = """
import logging
import structlog
from gateway.telemetry.logs import set_up_logs

set_up_logs("info", "{form}")
nested = {{"h": ["Authorization: Bearer canary-9876"]}}
structlog.get_logger().info("it_slipped", key="gk-canary-0123456789", nested=nested)
try:
    raise RuntimeError("redis://user:canary-pass@host:6379 refused sk-canary-0123456789")
except RuntimeError:
    structlog.get_logger().exception("it_broke")
    logging.getLogger("some.library").exception("it broke there, with hf_canary0123456789")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_secret_patterns_are_redacted_in_logs(form: str) -> None:
    """The rest of the line stays and is still JSON."""
    done = subprocess.run(
        [sys.executable, "-c", SLIPPED.format(form=form)], capture_output=True, text=True, timeout=30, check=True
    )
    assert "canary" not in done.stderr
    assert done.stderr.count("(hidden)") >= 6
    assert "@host:6379 refused" in done.stderr
    if form == "json":
        assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == [
            *("it_slipped", "it_broke", "it broke there, with (hidden)")
        ]


@pytest.mark.parametrize("header", ["x-api-key: ", "X-Api-Key: ", "Authorization: Bearer "])
def test_keys_in_headers_are_redacted_whatever_their_form(header: str) -> None:
    assert without_secrets(f"{header}canary-9876") == f"{header}(hidden)"


def test_tokens_are_redacted_wherever_they_are() -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl"
    assert without_secrets(f'{{"error":"cannot read {token}"}}') == '{"error":"cannot read (hidden)"}'


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"listening","public":"http://127.0.0.1:8080","tenant":"acme"}',
        '{"id":"req_0123456789abcdef01234567","process":"host-1234-abcdef"}',
        '{"engine":"risk-adjusted-model","hint":"a desk-lamp@home, ask-me-anything"}',
    ],
)
def test_other_text_is_not_redacted(line: str) -> None:
    """Names with a dash, addresses without a password."""
    assert without_secrets(line) == line

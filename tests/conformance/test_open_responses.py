"""Open Responses: the cases of its conformance suite, and the suite itself from a checkout.

GKT_OPEN_RESPONSES is the path of a checkout of github.com/openresponses/openresponses whose packages are installed
(`bun install`). Its suite runs with bun, or with node and tsx.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance.conftest import STORES
from tests.conformance.open_responses import CASES, NOT_OFFERED, SuiteCase, event_errors, response_errors
from tests.conformance.sse import read_events
from tests.gateway_process import OTHER_KEY

if TYPE_CHECKING:
    from tests.conformance.conftest import ScriptedGateway

CHECKOUT = os.environ.get("GKT_OPEN_RESPONSES")
MODEL = "chat-student"
PATH = "/v1/responses"


def errors_of(scripted: ScriptedGateway, case: SuiteCase) -> list[str]:
    """Run a case; return what is wrong."""
    previous: dict[str, Any] = {}
    for request, script in zip(case.requests, case.scripts, strict=True):
        body = {**request, **previous, "model": MODEL, "stream": case.stream}
        reply = scripted.post(PATH, body, script, STORES)
        if reply.status_code != 200:
            return [f"status {reply.status_code}: {reply.text}"]
        errors: list[str] = []
        if case.stream:
            events = [event.data for event in read_events(reply.content)]
            errors += [error for event in events for error in event_errors(event)]
            errors += [f"no event {name}" for name in case.events - {event["type"] for event in events}]
            response = events[-1]["response"]
        else:
            response = reply.json()
        errors += response_errors(response)
        if response["status"] != "completed":
            errors.append(f"status {response['status']}")
        types = {item["type"] for item in response["output"]}
        if not types or (case.item is not None and case.item not in types):
            errors.append(f"output of {sorted(types)}")
        if errors:
            return errors
        previous = {"previous_response_id": response["id"]}
    return []


def test_the_cases_of_the_suite_pass(scripted: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """Print a line for each case; all offered ones pass."""
    results = {case.id: errors_of(scripted, case) for case in CASES}
    with capsys.disabled():
        print("\nOpen Responses 2026-04-24, our requests:")
        for name, errors in results.items():
            print(f"  {'failed' if errors else 'passed':11} {name} {'; '.join(errors)}")
        for name, reason in NOT_OFFERED.items():
            print(f"  not offered {name}: {reason}")
    assert {name: errors for name, errors in results.items() if errors} == {}


def suite_command(checkout: Path) -> list[str]:
    """Return the command that runs the suite. Skip the test without a program for TypeScript."""
    script = str(checkout / "bin" / "compliance-test.ts")
    if bun := shutil.which("bun"):
        return [bun, "run", script]
    tsx = shutil.which("tsx", path=f"{checkout / 'node_modules' / '.bin'}:{os.environ['PATH']}")
    if tsx is None:
        pytest.skip("did not run: it needs bun, or node and tsx")
    return [tsx, script]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.skipif(CHECKOUT is None, reason="did not run: GKT_OPEN_RESPONSES is not the path of a checkout")
def test_the_suite_passes(scripted: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """The unmodified suite. Its cases run at the same time, so the engine calls a tool whenever one is offered."""
    assert CHECKOUT is not None
    checkout = Path(CHECKOUT)
    arguments = ["--base-url", f"{scripted.url}/v1", "--api-key", OTHER_KEY, "--model", MODEL, "--json"]
    with scripted.calling_offered_tools():
        done = subprocess.run(
            [*suite_command(checkout), *arguments], cwd=checkout, capture_output=True, text=True, check=False
        )
    assert done.stdout.startswith("{"), done.stderr
    results = json.loads(done.stdout)["results"]
    with capsys.disabled():
        print("\nOpen Responses, its own suite:")
        for result in results:
            print(f"  {result['status']:7} {result['id']} {'; '.join(result.get('errors') or [])[:150]}")
    failed = {result["id"] for result in results if result["status"] == "failed"}
    assert {name for name in failed if not name.startswith(tuple(NOT_OFFERED))} == set()
    assert {"basic-response", "streaming-response", "tool-calling"} <= {
        result["id"] for result in results if result["status"] == "passed"
    }

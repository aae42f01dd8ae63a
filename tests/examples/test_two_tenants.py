"""examples/two-tenants: the configuration is valid, unchanged, and does what its comments state."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from ruamel.yaml import YAML

from gateway.policy.book import check_all
from tests.cli.in_process import run
from tests.fakes import FakeEngine, says
from tests.gateway_process import model, running_gateway, sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "examples" / "two-tenants"
CONFIG = FOLDER / "config.yaml"


@pytest.fixture(autouse=True)
def admin_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GKT_ADMIN_KEY", "an-admin-key-for-tests")


def policies() -> dict[str, dict[str, Any]]:
    """Return the policy of each tenant, as the files define it."""
    files = [YAML(typ="safe").load(path) for path in sorted((FOLDER / "policies").glob("*.yaml"))]
    return {policy["tenant"]: policy for policy in files}


def explained(request: str, *more: str) -> dict[str, Any]:
    path = FOLDER / "requests" / f"{request}.json"
    done = run("check", "--config", str(CONFIG), "--explain", str(path), "--json", *more)
    output: dict[str, Any] = json.loads(done.stdout)
    plan: dict[str, Any] = output["plan"]
    return plan


def test_the_example_has_no_issues() -> None:
    settings, book, issues = check_all(CONFIG)
    assert list(issues) == []
    assert settings is not None
    assert book is not None


def test_the_keys_are_those_that_the_page_names() -> None:
    for tenant, policy in policies().items():
        assert [key["sha256"] for key in policy["keys"]] == [sha256(f"gk-example-{tenant}")]


def test_long_answers_are_guided_by_the_projection_of_ones_own_and_short_ones_are_not() -> None:
    long = explained("long", "--tenant", "acme")
    assert (long["mode"], long["guidance"]["projection"]) == ("guided", "answer-first")
    assert explained("short", "--tenant", "acme")["mode"] == "student"
    assert explained("short", "--tenant", "globex")["mode"] == "guided"


@pytest.fixture
def teacher() -> Iterator[FakeEngine]:
    with FakeEngine(says("Great question! Vaccines show the immune system", "length")).running() as engine:
        yield engine


@pytest.mark.long
def test_the_projection_changes_the_teachers_prompt_and_drops_its_patterns(
    teacher: FakeEngine, redis_url: str, tmp_path: Path
) -> None:
    """Send a request through a gateway with the two policies, unchanged."""
    shutil.copytree(FOLDER / "policies" / "projections", tmp_path / "policies" / "projections")
    body = json.loads((FOLDER / "requests" / "long.json").read_text("utf-8"))
    with ExitStack() as stack:
        student = stack.enter_context(FakeEngine(says(" what to look for.")).running())
        gateway = stack.enter_context(
            running_gateway(
                tmp_path,
                redis_url=redis_url,
                redis={"prefix": "two-tenants"},
                models=[
                    model("big", "tgi", teacher.url),
                    model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
                ],
                routes=[],
                tenants=policies(),
            )
        )
        key = {"Authorization": "Bearer gk-example-acme"}
        reply = httpx.post(f"{gateway.url}/v1/chat/completions", headers=key, json=body, timeout=60)
        other = {"Authorization": "Bearer gk-example-globex"}
        names = httpx.get(f"{gateway.url}/v1/models", headers=other).json()["data"]
    assert reply.headers["x-gkt-mode"] == "guided"
    assert reply.json()["choices"][0]["message"]["content"] == "Vaccines show the immune what to look for."
    assert "Begin with the answer itself" in json.dumps(teacher.requests)
    assert "Begin with the answer itself" not in json.dumps(student.requests)
    assert [one["id"] for one in names] == ["chat"]

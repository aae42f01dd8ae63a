"""The guides and the quickstart: their configuration is valid, their programs run, and their sample output is right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML

from gateway.cli.check import DEVELOPMENT_KEY, warnings_of
from gateway.cli.init_files import ADMIN_KEY
from gateway.migration.litellm import convert_litellm
from gateway.policy.book import check_all
from tests.clients.environments import node_modules
from tests.clients.programs import run
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)  # the client for Node.js is installed on first use

ROOT = Path(__file__).parents[2]
PAGES = ("docs/quickstart.md", "docs/edge.md", "docs/litellm.md")
SECRETS = ("GKT_ADMIN_KEY", "VLLM_KEY", "ANTHROPIC_API_KEY", "LITELLM_MASTER_KEY", "BUDGET_WEBHOOK", "HOOK_SECRET")
WHOLE = "Because of scattering."


def blocks(page: str) -> dict[str, str]:
    """Return the named blocks by the name in their first line."""
    text = (ROOT / page).read_text("utf-8")
    return dict(re.findall(r"^```\w+\n(?:#|//) (\S+\.\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "https://placeholder.example")


def written(page: str, folder: Path) -> Path:
    (folder / "policies").mkdir()
    for name, text in blocks(page).items():
        (folder / name).write_text(f"# {name}\n{text}", "utf-8")
    (folder / ADMIN_KEY).write_text("an-admin-key-for-tests\n", "utf-8")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_configuration_can_be_used(page: str, tmp_path: Path) -> None:
    settings, book, issues = check_all(written(page, tmp_path) / "config.yaml")
    assert list(issues) == []
    assert settings is not None
    assert book is not None


def test_the_other_proxys_file_is_answered_as_the_guide_shows(tmp_path: Path) -> None:
    page = "docs/litellm.md"
    _, _, issues = check_all(written(page, tmp_path) / "litellm.yaml")
    shown = re.findall(r"^litellm\.yaml:.*$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert [str(issue).removeprefix(f"{tmp_path}/") for issue in issues] == shown


def test_the_guides_conversion_lists_what_it_shows(tmp_path: Path) -> None:
    page = "docs/litellm.md"
    listed = convert_litellm(written(page, tmp_path) / "litellm.yaml").not_converted
    shown = re.findall(r"^  (litellm\.yaml:.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert [str(one).removeprefix(f"{tmp_path}/") for one in listed] == shown


def test_of_the_guides_configuration_check_warns_for_its_well_known_key_alone(tmp_path: Path) -> None:
    settings, book, _ = check_all(written("docs/litellm.md", tmp_path) / "config.yaml")
    assert settings is not None
    assert book is not None
    assert [one for one in warnings_of(settings, book) if DEVELOPMENT_KEY not in one] == []


def test_the_guides_configuration_falls_back_as_the_other_proxys_does(tmp_path: Path) -> None:
    written("docs/litellm.md", tmp_path)
    other = YAML(typ="safe").load(tmp_path / "litellm.yaml")["router_settings"]
    (ours, *_) = YAML(typ="safe").load(tmp_path / "policies" / "acme.yaml")["routes"]
    assert other["fallbacks"] == [{"chat": ours["students"][1:]}]
    assert other["num_retries"] == ours["retries"]["num_retries"]


@pytest.mark.timeout(600)
def test_the_examples_ci_script_passes_and_rejects_a_wrong_policy(tmp_path: Path) -> None:
    """The script leaves no files and reports an error once."""
    folder = tmp_path / "two-tenants"
    shutil.copytree(ROOT / "examples" / "two-tenants", folder)
    before = sorted(folder.rglob("*"))
    script = (folder / "ci.sh").read_text("utf-8").replace("gkt-gateway", f"{sys.executable} -m gateway")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def ran() -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", script]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    done = ran()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(folder.rglob("*")) == before
    policy = folder / "policies" / "acme.yaml"
    policy.write_text(policy.read_text("utf-8").replace("teacher: big", "techer: big"), "utf-8")
    done = ran()
    assert done.returncode == 1
    assert done.stderr.count("Did you mean 'teacher'?") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def gateway(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with ExitStack() as stack:
        teacher = stack.enter_context(FakeEngine(says("Because of light", "length")).running())
        student = stack.enter_context(FakeEngine(says(" scattering.")).running())
        models = [
            model("big", "tgi", teacher.url),
            model("small", "openai", f"{student.url}/v1", continuation="trailing", echo=False),
        ]
        yield stack.enter_context(
            running_gateway(
                tmp_path_factory.mktemp("gateway"),
                redis_url=redis_url,
                redis={"prefix": "guides"},
                models=models,
                routes=[guided(tokens=6)],
            )
        )


@pytest.mark.parametrize(
    ("name", "program", "key", "shown"),
    [
        ("ask.py", sys.executable, KEY, f"{WHOLE}\nguided \\S+\n{WHOLE}\nguided \\S+\n"),
        ("careful.py", sys.executable, KEY, f"{WHOLE}\n"),
        ("careful.py", sys.executable, "gk-nobody", r"401 invalid_api_key tell your platform team: req_\w+\n"),
        ("ask.mjs", "node", KEY, f"{WHOLE}\nguided \\S+\n{WHOLE}\nguided \\S+\n"),
    ],
)
def test_a_program_of_the_clients_page_runs(
    gateway: GatewayProcess, tmp_path: Path, name: str, program: str, key: str, shown: str
) -> None:
    text = blocks("docs/clients.md")[name]
    (tmp_path / name).write_text(text.replace("http://127.0.0.1:8080", gateway.url).replace("gk-demo", key), "utf-8")
    if program == "node":
        (tmp_path / "node_modules").symlink_to(node_modules())
    done = run([program, name], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(shown, done.stdout), done.stdout

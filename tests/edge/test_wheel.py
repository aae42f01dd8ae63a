"""The edge distribution contains only what the client imports, and needs only httpx."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grimp
import pytest

from tests.clients.environments import HERE, run_command, run_installer
from tests.edge.devices import NOBODY, toy
from tests.edge.fake_gateway import KEY, FakeGateway
from tests.engines.toy_servers import ANSWER, QUESTION, LlamaCpp

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[2]
EDGE = tomllib.loads((ROOT / "edge" / "pyproject.toml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# What a distribution is imported as, where that is not its name.
IMPORTED_AS = {"google-re2": "re2", "prometheus-client": "prometheus_client", "ruamel-yaml": "ruamel"}

PROGRAM = """
import json, sys
from importlib.metadata import distributions
from gateway.edge import Edge, UrlStudent

gateway, student, queue, key, question = sys.argv[1:]
with Edge(gateway, key=key, student=UrlStudent(student + "/v1"), queue=__import__("pathlib").Path(queue)) as edge:
    reply = edge.complete({"model": "chat", "messages": [{"role": "user", "content": question}]})
json.dump(
    {
        "said": reply["choices"][0]["message"]["content"],
        "gkt": reply["gkt"],
        "from": __import__("gateway").__file__,
        "installed": sorted(one.metadata["Name"].lower() for one in distributions()),
        "modules": sorted(name for name in sys.modules if name.startswith("gateway")),
    },
    sys.stdout,
)
"""


def names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=!~;\\[ ]", one.strip())[0].lower() for one in requirements if one.strip()}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Return the runtime imports, without imports for type checking."""
    return grimp.build_graph("gateway", include_external_packages=True, exclude_type_checking_imports=True)


def closure(graph: grimp.ImportGraph) -> set[str]:
    """Return all modules that `import gateway.edge` may import, with their packages."""
    found = {"gateway.edge", *graph.find_descendants("gateway.edge")}
    for one in sorted(found):
        found |= graph.find_upstream_modules(one)
    ours = {one for one in found if one.split(".")[0] == "gateway"}
    packages = {".".join(one.split(".")[:depth]) for one in ours for depth in range(1, one.count(".") + 1)}
    return found | packages


def test_the_wheel_contains_the_imported_modules(graph: grimp.ImportGraph) -> None:
    ours = [one for one in closure(graph) if one.split(".")[0] == "gateway"]
    files = {
        f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"
        for path in (one.replace(".", "/") for one in ours)
    }
    assert EDGE["tool"]["hatch"]["build"]["hooks"]["custom"]["shipped"] == sorted(files)


def test_the_client_imports_only_httpx_and_optionally_llama_cpp(graph: grimp.ImportGraph) -> None:
    others = {one.split(".")[0] for one in closure(graph)} - {"gateway"} - set(sys.stdlib_module_names)
    assert others == {"httpx", "xllamacpp"}
    assert names(EDGE["project"]["dependencies"]) == {"httpx"}
    assert names(EDGE["project"]["optional-dependencies"]["llama"]) == {"xllamacpp"}


def test_the_contract_names_all_that_the_gateway_has_beyond_that() -> None:
    (contract,) = EDGE["tool"]["importlinter"]["contracts"]
    forbidden = names(PROJECT["project"]["dependencies"]) - names(EDGE["project"]["dependencies"])
    assert contract["forbidden_modules"] == sorted(IMPORTED_AS.get(name, name.replace("-", "_")) for name in forbidden)


def test_both_distributions_ask_for_the_same_versions() -> None:
    assert set(EDGE["project"]["dependencies"]) <= set(PROJECT["project"]["dependencies"])
    assert set(EDGE["project"]["optional-dependencies"]["llama"]) <= set(
        PROJECT["project"]["optional-dependencies"]["local"]
    )
    assert EDGE["project"]["dependencies"] == (HERE / "edge.in").read_text("utf-8").split()
    assert (ROOT / "edge" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from its pyproject.toml."""
    folder = tmp_path_factory.mktemp("dist")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    run_command(sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", folder, ROOT / "edge")
    (found,) = folder.glob("gkt_edge-*.whl")
    return found


def test_the_wheel_contains_the_named_files_unchanged(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    shipped = EDGE["tool"]["hatch"]["build"]["hooks"]["custom"]["shipped"]
    assert held == {name: (ROOT / name).read_bytes() for name in shipped}


@pytest.mark.timeout(300)
def test_the_client_works_in_an_environment_with_only_httpx(wheel: Path, tmp_path: Path) -> None:
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "env" / "bin" / "python"
    run_command(uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    quiet = ("--quiet", "--python", python)
    run_installer(uv, "pip", "sync", *quiet, "--require-hashes", "--no-build", HERE / "edge.lock")
    run_command(uv, "pip", "install", *quiet, "--no-index", "--no-deps", wheel)

    def answered(gateway: str, student: str) -> dict[str, Any]:
        command = [python, "-I", "-c", PROGRAM, gateway, student, tmp_path / "queue", KEY, QUESTION]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    gateway = FakeGateway()
    with gateway.running() as url, toy(LlamaCpp()) as student:
        guided, alone = answered(url, student.url), answered(NOBODY, student.url)
    assert (guided["said"], guided["gkt"]["mode"]) == (ANSWER, "guided")
    assert (alone["said"], alone["gkt"]["unguided"]) == (ANSWER, "gateway_unreachable")
    assert guided["from"].startswith(str(tmp_path))
    locked = re.findall(r"^([a-z0-9-]+)==", (HERE / "edge.lock").read_text("utf-8"), re.MULTILINE)
    assert {name.replace("_", "-") for name in guided["installed"]} <= {"gkt-edge", *locked}
    assert len(gateway.reports) == 1

"""The fault_gateway and the Node.js packages that clients share."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.clients.agent_gateway import AgentGateway, running_agent_gateway
from tests.clients.environments import HERE, node_modules
from tests.clients.fault_gateway import FaultGateway, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def fault_gateway(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultGateway]:
    with set_up(tmp_path_factory.mktemp("clients"), redis_url) as ready:
        yield ready


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the programs, in which `import OpenAI from "openai"` works as in a user's project."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(node_modules())
    for program in (HERE / "node").glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


@pytest.fixture(scope="session")
def agent_gateway(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentGateway]:
    with running_agent_gateway(tmp_path_factory.mktemp("agents"), redis_url) as ready:
        yield ready

"""The fault_gateway that all clients share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.fault_gateway import FaultGateway, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def fault_gateway(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultGateway]:
    with set_up(tmp_path_factory.mktemp("clients"), redis_url) as ready:
        yield ready

"""The stage that all clients share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.clients.stage import Stage, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stage(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with set_up(tmp_path_factory.mktemp("clients"), redis_url) as ready:
        yield ready

"""A test server whose connections are those of the gateway's listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp.test_utils import TestServer

from gateway.api.runner import Runner
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from aiohttp.web_runner import BaseRunner


class ListenerServer(TestServer):
    async def _make_runner(self, **options: Any) -> BaseRunner:
        return Runner(self.app, metrics=Metrics(), listener="public", max_connections=9, **options)

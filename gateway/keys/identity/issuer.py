"""Keep the discovery document and the keys of one issuer up to date."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from gateway.config.identity import check_issuer_url
from gateway.config.scalars import InvalidValue
from gateway.keys.identity.document import DocumentError, parse_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from joserfc.jwk import Key

    from gateway.config.identity import IssuerSettings
    from gateway.keys.identity.document import DocumentReader
    from gateway.keys.identity.jose import IssuerKeys
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics

log = structlog.get_logger()

DISCOVERY = "/.well-known/openid-configuration"
REFRESH_S = 300.0
"""Interval at which the keys are read again. A key that the issuer removed is rejected after this time."""
UNKNOWN_KEY_INTERVAL_S = 10.0
"""Unknown keys of tokens cause at most one reading of the keys in this time."""
_RETRY_S = 15.0
_MAX_LOGGED = 20


class IssuerState(NamedTuple):
    """The result of the last reading of an issuer's keys. Times are Unix seconds."""

    read_at: float | None = None  # the last successful reading; None: there was none
    keys: int = 0
    error: str | None = None  # why the last reading failed; None: it succeeded, or is the first


class Issuer:
    """An issuer of tokens with its keys. The last keys stay in use while the issuer is unreachable.

    Attributes:
        keys: the keys of the last successful reading; None: there was none. Equal keys stay the same object.

    Args:
        on_change: called after the keys changed.
        unknown_key_interval_s: minimum time between two readings that tokens with unknown keys cause.
    """

    def __init__(
        self,
        settings: IssuerSettings,
        reader: DocumentReader,
        tasks: BackgroundTasks,
        metrics: Metrics,
        on_change: Callable[[], None],
        unknown_key_interval_s: float,
    ) -> None:
        self.settings, self.state = settings, IssuerState()
        self._reader, self._tasks, self._metrics, self._on_change = reader, tasks, metrics, on_change
        self._interval_s = unknown_key_interval_s
        self.keys: IssuerKeys | None = None
        self._discovery: Mapping[str, Any] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._tried_at = float("-inf")  # by the clock of the event loop
        self._closed = False

    @property
    def name(self) -> str:
        return self.settings.name

    async def run(self) -> None:
        """Read the keys at the configured interval until canceled, and sooner after a failure."""
        while True:
            await self.refresh()
            interval_s = REFRESH_S
            interval_s = interval_s if self.state.error is None else min(interval_s, _RETRY_S)
            await asyncio.sleep(interval_s * random.uniform(0.9, 1.0))  # noqa: S311  spreads the processes' requests

    def close(self) -> None:
        """Publish nothing more: another issuer may have this name by now."""
        self._closed = True

    async def refresh(self) -> None:
        """Read the keys now, or wait for the reading in progress. A failure is logged and is in `state`."""
        if self._reading is None or self._reading.done():
            self._tried_at = asyncio.get_running_loop().time()
            self._reading = self._tasks.spawn(f"issuer:{self.name}", self._read())
        await asyncio.shield(self._reading)

    async def find_key(self, kid: str | None, algorithm: str) -> Key | None:
        """Return a key. For an unknown one, read the keys again, at most once in `unknown_key_interval_s`.

        A reading in progress serves all tokens that wait.
        """
        if self.keys is not None and (found := self.keys.find(kid, algorithm)) is not None:
            return found
        in_progress = self._reading is not None and not self._reading.done()
        if in_progress or asyncio.get_running_loop().time() - self._tried_at >= self._interval_s:
            await self.refresh()
        return None if self.keys is None else self.keys.find(kid, algorithm)

    async def discovery(self) -> Mapping[str, Any]:
        """Return the discovery document, with the URLs of the endpoints. Raises DocumentError."""
        if self._discovery is None:
            self._discovery = await self._read_discovery()
        return self._discovery

    async def _read(self) -> None:
        try:
            keys = await self._read_keys()
        except Exception as error:
            # After any error, the last keys stay in use, and later readings follow.
            unexpected = not isinstance(error, DocumentError)
            why = f"internal error: {type(error).__name__}" if unexpected else str(error)
            if self._closed:
                return
            if self.state.error is None:
                log.warning(
                    "issuer_unreachable", issuer=self.name, error=why, keys=self.state.keys, exc_info=unexpected
                )
            self.state = self.state._replace(error=why)
            self._metrics.issuer_up.labels(self.name).set(0)
            return
        if self._closed:
            return
        if self.state.error is not None:
            log.info("issuer_reachable_again", issuer=self.name)
        self.state = IssuerState(time.time(), len(keys.keys.keys))
        self._metrics.issuer_up.labels(self.name).set(1)
        if self.keys != keys:
            self.keys = keys
            kids = [key.kid for key in keys.keys][:_MAX_LOGGED]
            log.info("issuer_keys_changed", issuer=self.name, kids=kids, ignored=keys.ignored[:_MAX_LOGGED])
            self._on_change()

    async def _read_keys(self) -> IssuerKeys:
        url = self.settings.jwks_url
        if url is None:
            self._discovery = await self._read_discovery()
            url = self._endpoint(self._discovery, "jwks_uri")
        else:
            self._discovery = None  # the next login reads it again
        raw = await self._reader.read(url, self.settings.ca)
        try:
            return await asyncio.to_thread(_parse_keys, raw)
        except ValueError as error:
            raise DocumentError(f"the keys are not usable: {error}") from None

    async def _read_discovery(self) -> Mapping[str, Any]:
        raw = await self._reader.read(self.settings.issuer.rstrip("/") + DISCOVERY, self.settings.ca)
        try:
            document = parse_object(raw)
        except ValueError as error:
            raise DocumentError(f"the discovery document is not usable: {error}") from None
        if document.get("issuer") != self.settings.issuer:
            raise DocumentError("the discovery document has another issuer than config.yaml")
        return document

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str:
        """Return a URL of the discovery document. Raises DocumentError if it is missing or without TLS."""
        url = document.get(name)
        try:
            if isinstance(url, str) and (not url.startswith("http:") or self.settings.issuer.startswith("http:")):
                return check_issuer_url(url)
        except InvalidValue:
            pass
        raise DocumentError(f"the discovery document has no https URL in {name}")

    async def endpoint(self, name: str) -> str:
        """Return the URL of an endpoint, such as `token_endpoint`. Raises DocumentError."""
        return self._endpoint(await self.discovery(), name)


def _parse_keys(raw: bytes) -> IssuerKeys:
    # Imported here: without issuers, a process does not load the cryptography.
    from gateway.keys.identity.jose import IssuerKeys

    return IssuerKeys.parse(raw)

"""Read a small JSON document from an issuer over HTTP, or send it a form."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from gateway.config.identity import trusting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_BYTES = 512_000
_TIMEOUT = aiohttp.ClientTimeout(total=5.0, connect=3.0)
_OK = 200
_UNKNOWN_CA = frozenset({18, 19, 20, 21})
"""X509_V_ERR codes of OpenSSL for certificates that no trusted CA has signed."""
# A compressed document could be larger than its limit in memory. It is not decompressed even if a server sends one.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


class DocumentError(Exception):
    """The document cannot be read. The message is for logs and contains nothing that the server sent."""


class DocumentReader:
    """Read documents, without cookies and without following redirects. Opens its session for the first document."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def read(self, url: str, ca: Path | None = None) -> bytes:
        """Return the body of a reply with status 200. Raises DocumentError, also for more than MAX_BYTES bytes."""
        status, body = await self.request("GET", url, ca=ca)
        if status != _OK:
            raise DocumentError(f"the reply has status {status}")
        return body

    async def request(
        self,
        method: str,
        url: str,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        ca: Path | None = None,
    ) -> tuple[int, bytes]:
        """Return status and body of a reply. Raises DocumentError, also for more than MAX_BYTES bytes.

        `ca` is a file with the only trusted certificates. Each call reads it, so that a renewed file applies.
        """
        try:
            context = True if ca is None else await asyncio.to_thread(trusting, ca)
        except OSError as error:
            raise DocumentError(f"the file of the issuer's `ca` cannot be used ({type(error).__name__})") from None
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=_TIMEOUT,
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        try:
            async with self._session.request(
                method, url, data=form, headers=headers, allow_redirects=False, ssl=context
            ) as reply:
                body = bytearray()
                async for chunk in reply.content.iter_any():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise DocumentError(f"the document has more than {MAX_BYTES} bytes")
                return reply.status, bytes(body)
        except TimeoutError:
            raise DocumentError("no reply in time") from None
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
            raise DocumentError(_why_invalid(error)) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DocumentError(f"not reachable ({type(error).__name__})") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def parse_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8. Raises ValueError, also for NaN, Infinity and half of a surrogate pair."""
    value = orjson.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _why_invalid(error: aiohttp.ClientConnectorCertificateError | ssl.SSLError) -> str:
    """Return the reason in the words of OpenSSL, which contain at most the host of the URL."""
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return "the TLS certificate is not valid"
    hint = ": set `ca` of the issuer to the file of its CA" if cause.verify_code in _UNKNOWN_CA else ""
    return f"the TLS certificate is not valid ({cause.verify_message}){hint}"

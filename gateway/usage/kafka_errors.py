"""Causes of failures at brokers: the wrong setting of `export.kafka`, and its fix."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.usage.export_stream import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGER = "aiokafka"
_LOGIN = (
    "the brokers reject the login: correct username and password under export.kafka.sasl in config.yaml, and check "
    "that the brokers have this user for export.kafka.sasl.mechanism. Restart the usage workers."
)
_RIGHTS = "the brokers do not allow it: grant the user the rights Describe and Write on export.kafka.topic."
_FIXES = {
    "SaslAuthenticationFailed": _LOGIN,
    "AuthenticationFailedError": _LOGIN,
    "UnsupportedSaslMechanismError": "the brokers do not offer export.kafka.sasl.mechanism: set one that they offer.",
    "IllegalSaslStateError": (
        "the brokers expect no login: remove export.kafka.sasl, or name a listener with SASL under "
        "export.kafka.brokers."
    ),
    "TopicAuthorizationFailedError": _RIGHTS,
    "ClusterAuthorizationFailedError": _RIGHTS,
}
"""Fixes by the class of aiokafka's error."""
_WITHOUT_CAUSE = {"KafkaConnectionError", "KafkaTimeoutError", "TimeoutError"}
_MISMATCHES = {62, 64}  # OpenSSL's codes for a certificate of another host name or IP address
_TLS_ALERT = 0x15  # first byte of the alert with which TLS answers plain text
_NO_TLS = (
    "the brokers, or a proxy in front of them, close the connection during the TLS handshake: check that the brokers "
    "run. If they run, name a listener with TLS under export.kafka.brokers, or remove export.kafka.tls."
)
_VERSION = "the brokers support no TLS version of the gateway: enable TLS 1.2 or 1.3 on their listener."
_ONLY_TLS = "the brokers expect TLS: set export.kafka.tls, or name a listener without TLS under export.kafka.brokers."
_MOST_CAUSES = 5


class ConnectErrors(logging.Handler):
    """Keep the last error of a connection. aiokafka logs this error, and raises another one that omits the cause."""

    def __init__(self) -> None:
        super().__init__()
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error among the arguments of a log record."""
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, BaseException):
                self.last = argument


@contextmanager
def connect_errors() -> Iterator[ConnectErrors]:
    """Collect errors of connections during the context."""
    handler, logger = ConnectErrors(), logging.getLogger(_LOGGER)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def explained(error: BaseException, connecting: BaseException | None) -> BaseException:
    """Return a SettingError if a setting causes the error, else the error.

    `connecting` is the last error of a connection. It counts if `error` says only that there was no connection.
    """
    causes = _chain(error)
    if type(error).__name__ in _WITHOUT_CAUSE:
        causes += _chain(connecting)
        if type(connecting) is ConnectionResetError:  # a nested one is a connection that broke later
            return SettingError("ConnectionResetError", _NO_TLS)
    for cause in causes:
        if (fix := _fix(cause)) is not None:
            return SettingError(type(cause).__name__, fix)
    return error


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and len(found) < _MOST_CAUSES:
        found.append(error)
        error = error.__cause__
    return found


def _fix(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _MISMATCHES:
            return (
                f"the certificate of a broker is for another host ({error.verify_message}): name the brokers under "
                "export.kafka.brokers, and in their advertised.listeners, as their certificates do."
            )
        return (
            f"the certificate of a broker is not trusted ({error.verify_message}): set export.kafka.tls.ca to the PEM "
            "file of the CA that signs the certificates of the brokers, and renew expired certificates."
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in (reason := error.reason or ""):
        if reason.endswith("PROTOCOL_VERSION"):
            return _VERSION
        return (
            f"the brokers reject the TLS connection ({reason}): set certificate and key under export.kafka.tls to a "
            "certificate that the brokers trust."
        )
    # The client takes the first four bytes of a reply for its length.
    if isinstance(error, asyncio.IncompleteReadError) and (error.expected or 0) >> 24 == _TLS_ALERT:
        return _ONLY_TLS
    return _FIXES.get(type(error).__name__)

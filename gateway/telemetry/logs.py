"""Logs: structlog, JSON lines on standard error, or colors on a terminal."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog

if TYPE_CHECKING:
    import asyncio

    from structlog.typing import Processor

log = structlog.get_logger()


# Set for each request and its tasks. It is unset elsewhere, where no code handles callers' text.
_CONTENT_ALLOWED: ContextVar[bool] = ContextVar("content_allowed_in_logs")
_MAX_CAUSES = 10


def allow_content_in_logs(*, allowed: bool) -> None:
    """Set whether logs of the current request may contain the text of the request and its answer."""
    _CONTENT_ALLOWED.set(allowed)


def content_allowed_in_logs() -> bool:
    """Return whether logs of the current request may contain its text. The default is False."""
    return _CONTENT_ALLOWED.get(False)


def _format_exception(exc_info: Any) -> str:
    """Return a traceback. Inside a request it omits messages of exceptions, which may quote the request's text."""
    if _CONTENT_ALLOWED.get(True):
        return "".join(traceback.format_exception(*exc_info)).rstrip()
    return _without_messages(exc_info[1])


def _without_messages(error: BaseException | None) -> str:
    tracebacks: list[str] = []
    while error is not None and len(tracebacks) < _MAX_CAUSES:
        frames = "".join(traceback.format_tb(error.__traceback__))
        tracebacks.append(f"Traceback (most recent call last):\n{frames}{type(error).__name__}: (message omitted)")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nDuring its handling, or as its result:\n\n".join(reversed(tracebacks))


def log_loop_exception(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an unhandled exception of the event loop without its message. asyncio's own line would contain it."""
    what = str(context.get("message", ""))
    if what.startswith(in_callback := "Exception in callback"):  # its arguments follow
        what = in_callback
    log.error("loop", what=what, exception=_without_messages(context.get("exception")))


def _log_hook(event: str, args: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    log.error(event, exception=_without_messages(args.exc_value))


# Code must not pass secrets to a logger. As a second safeguard, text that looks like a secret is hidden.
_SIGNS = ("k-", "earer", "asic ", "ey: ", "://", "hf_", "eyJ")
_SECRETS = re.compile(
    # Keys of this gateway, of OpenAI and similar providers, and of Hugging Face. A color code before it ends in m.
    r"(?:(?<![A-Za-z0-9])|(?<=\dm))(?:gk-|sk-|hf_)[A-Za-z0-9_-]{8,}"
    r"|(?<=\b[Bb]earer )[^\s\"'\\]{8,}|(?<=\b[Xx]-[Aa][Pp][Ii]-[Kk]ey: )[^\s\"'\\]{8,}"
    r"|(?<=\b[Bb]asic )[^\s\"'\\]{8,}"
    r"|(?<=://)[^\s/@\"'\\]+(?=@)"  # user and password in a URL
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"  # JSON Web Tokens
)


def without_secrets(text: str) -> str:
    """Replace text that looks like a key or a password."""
    for sign in _SIGNS:  # few lines match, and the pattern takes fifty times as long
        if sign in text:
            return _SECRETS.sub("(hidden)", text)
    return text


def _hidden(_: Any, __: str, line: str) -> str:
    return without_secrets(line)


def _to_json(record: Any, **_: Any) -> str:
    # Decimals and other types that orjson does not support become text.
    return orjson.dumps(record, default=str).decode()


def set_up_logs(
    level: str,
    form: Literal["auto", "json", "console"],
    *,
    worker: int | None = None,
    console_processor: Processor | None = None,
) -> None:
    """Configure structlog and `logging` to write to standard error in one format.

    Each line has the number of this worker, if there is one. `console_processor` shortens events for the console.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(lambda _, __, event: {**event, "worker": worker})
    rendered: list[Processor] = (
        # Exclude the values of local variables: they contain prompts and keys.
        [
            *([console_processor] if console_processor is not None else ()),
            structlog.dev.ConsoleRenderer(
                sort_keys=False, exception_formatter=lambda out, info: print("\n" + _format_exception(info), file=out)
            ),
        ]
        if console
        else [
            structlog.processors.ExceptionRenderer(_format_exception),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    )
    rendered.append(_hidden)  # type: ignore[arg-type]  # it gets the rendered line
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        # An edit of config.yaml changes the log of the supervisor, which is no worker.
        cache_logger_on_first_use=worker is not None,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries log warnings and errors only, whatever the configured level.
    root.setLevel(max(number, logging.WARNING))
    # Python's own output of warnings contains values.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").disabled = True
    threading.excepthook = partial(_log_hook, "thread_failed")
    sys.unraisablehook = partial(_log_hook, "exception_ignored")
    # It logs each request it cannot parse with the raw line in the traceback, and that line may be a key.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

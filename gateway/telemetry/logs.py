"""Logs: structlog, JSON lines on standard error, or colours on a terminal."""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog

if TYPE_CHECKING:
    import asyncio

    from structlog.typing import Processor

log = structlog.get_logger()


# Of a request, and of what is done for it. Unset elsewhere: there nothing handles what callers wrote.
_QUOTES: ContextVar[bool] = ContextVar("quotes_content")
_MOST_CAUSES = 10


def let_quote_content(*, quotes: bool) -> None:
    """Say whether what is logged for the request under way, from here on, may quote what it asks and is answered."""
    _QUOTES.set(quotes)


def quotes_content() -> bool:
    """Whether somebody said that it may."""
    return _QUOTES.get(False)


def _told(exc_info: Any) -> str:
    """A traceback. In a request without the messages of exceptions: they may quote it."""
    if _QUOTES.get(True):
        return "".join(traceback.format_exception(*exc_info)).rstrip()
    return _without_messages(exc_info[1])


def _without_messages(error: BaseException | None) -> str:
    told: list[str] = []
    while error is not None and len(told) < _MOST_CAUSES:
        frames = "".join(traceback.format_tb(error.__traceback__))
        told.append(f"Traceback (most recent call last):\n{frames}{type(error).__name__}: (its message is left out)")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nwhile handling this, or because of it:\n\n".join(reversed(told))


def tell_of_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For the event loop: what nobody waited for. Its own line would hold the exception's message, and arguments."""
    what = str(context.get("message", ""))
    if what.startswith(in_callback := "Exception in callback"):  # its arguments follow
        what = in_callback
    log.error("loop", what=what, exception=_without_messages(context.get("exception")))


def _tell_of_thread(args: threading.ExceptHookArgs) -> None:
    log.error("thread_broke", exception=_without_messages(args.exc_value))


def _tell_of_unraisable(found: sys.UnraisableHookArgs) -> None:
    log.error("exception_ignored", exception=_without_messages(found.exc_value))


# The first net is that no secret is ever handed to a logger. This is the second: what looks like one does not get out.
_TELLING = ("k-", "earer", "asic ", "://", "hf_")
_SECRETS = re.compile(
    # This gateway's keys, OpenAI's and its like, Hugging Face's. On a terminal a colour may stand before: it ends in m.
    r"(?:(?<![A-Za-z0-9])|(?<=\dm))(?:gk-|sk-|hf_)[A-Za-z0-9_-]{8,}"
    r"|(?<=\b[Bb]earer )[^\s\"'\\]{8,}|(?<=\b[Bb]asic )[^\s\"'\\]{8,}"
    r"|(?<=://)[^\s/@\"'\\]+(?=@)"  # user and password of an address
)


def without_secrets(text: str) -> str:
    """A line for the log, without what has the shape of a key or a password."""
    for sign in _TELLING:  # few lines have one, and the search takes fifty times as long
        if sign in text:
            return _SECRETS.sub("(hidden)", text)
    return text


def _hidden(_: Any, __: str, line: str) -> str:
    return without_secrets(line)


def _to_json(record: Any, **_: Any) -> str:
    # Decimals and whatever else orjson does not know become text.
    return orjson.dumps(record, default=str).decode()


def set_up_logs(
    level: str,
    form: Literal["auto", "json", "console"],
    *,
    worker: int | None = None,
    for_eyes: Processor | None = None,
) -> None:
    """Send structlog's events, and those of libraries that use `logging`, down one path.

    Args:
        worker: this process's number among several; it stands in each line.
        for_eyes: what makes events shorter for a terminal.
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
        # Never with the values of local variables: they hold prompts and keys.
        [
            *([for_eyes] if for_eyes is not None else ()),
            structlog.dev.ConsoleRenderer(
                sort_keys=False, exception_formatter=lambda out, info: print("\n" + _told(info), file=out)
            ),
        ]
        if console
        else [structlog.processors.ExceptionRenderer(_told), structlog.processors.JSONRenderer(serializer=_to_json)]
    )
    rendered.append(_hidden)  # type: ignore[arg-type]  # it gets the line, not the event
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up only when something is wrong, whatever we were asked to say ourselves.
    root.setLevel(max(number, logging.WARNING))
    # What they would write on standard error by themselves has values in it.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").disabled = True
    threading.excepthook = _tell_of_thread
    sys.unraisablehook = _tell_of_unraisable
    # It logs each request it cannot parse with the raw line in the traceback, and that line may be a key.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

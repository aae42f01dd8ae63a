"""Logs: structlog, JSON lines on standard error, or colours on a terminal."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


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


def set_up_logs(level: str, form: Literal["auto", "json", "console"], *, worker: int | None = None) -> None:
    """Send structlog's events, and those of libraries that use `logging`, down one path.

    Args:
        worker: this process's number among several; it stands in each line.
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
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
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
    # It logs each request it cannot parse with the raw line in the traceback, and that line may be a key.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

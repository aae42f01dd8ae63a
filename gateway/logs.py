"""Logs: structlog, JSON lines on standard error, or colours on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


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

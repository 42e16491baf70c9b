"""Where and how the processes of the data plane log."""

import io
import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import Processor

LEVELS = ("debug", "info", "warning", "error")


def to_stderr(level: str) -> None:
    """One JSON object a line: the event, its level and time, and the shard, epoch and seq that it is about.

    What libraries have to say goes the same way, from warnings on.
    """
    stream = cast("TextIO", _Tolerant(sys.stderr))
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_is_not_a_bad_request)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def _is_not_a_bad_request(record: logging.LogRecord) -> bool:
    """What is no HTTP is answered with 400, as other mistakes of clients are, and like them not logged."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class _Tolerant(io.TextIOBase):
    """A stream whose failures are nobody's business: a full disk under the log must not stop the process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

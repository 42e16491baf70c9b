"""What headers say about bodies: media types, compression, the operation id; and bodies that keep within bounds.

Requests may be compressed with gzip or zstd. They are inflated here and not by aiohttp, which takes a body that is cut
off for a whole one: the server must be made with `AIOHTTP_INFLATES`. Inflated bytes come in small pieces as the handler
asks for them, so a bomb costs no more memory than a body at the limit.
"""

import asyncio
import re
import sys
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from veccluster.errors import InvalidRequest, NotAcceptable, PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from veccluster_node.runtime import budget

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
ARROW: Final = "application/vnd.apache.arrow.stream"
OCTETS: Final = "application/octet-stream"
PROBLEM: Final = "application/problem+json"

AIOHTTP_INFLATES: Final = False
"""What `web.AppRunner` must be given as `auto_decompress`."""

OPERATION_HEADER: Final = "Operation-Id"
PATIENCE = 60.0
"""Seconds that a body of any length may pause."""
WHOLE = 20.0
"""Seconds that are waited in all for a body that is read whole, beside what it takes at `SLOWEST`."""
SLOWEST = 16 << 10
"""Bytes a second in which it arrives at least."""
TICKET: Final = web.RequestKey("ticket", budget.Ticket)
"""Under which a request has its `budget.Ticket`."""
PIECE: Final = 256 << 10
"""Inflated bytes that are produced at once."""
WORTH_COMPRESSING: Final = 1 << 10
"""Bytes from which a reply is compressed."""

_ENCODINGS: Final = ("gzip", "zstd")


def check_content_type(request: web.Request, *accepted: str) -> str:
    """The media type of the body, one of `accepted`; where there is no body, the first of them.

    A body must say what it is: a web page may send any other site one that does not, unasked.
    """
    header = request.headers.get("Content-Type")
    if header is None:
        if request.can_read_body:
            raise UnsupportedMediaType(f"Content-Type must be given: {_either(accepted)}")
        return accepted[0]
    kind, _, parameters = header.partition(";")
    kind = kind.strip().lower()
    if kind not in accepted:
        raise UnsupportedMediaType(f"Content-Type must be {_either(accepted)}, is {kind or 'empty'}")
    charset = re.search(r'charset\s*=\s*"?([^";\s]+)', parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType(f"the charset must be utf-8, is {charset[1]}")
    return kind


def choose(request: web.Request, *offered: str) -> str:
    """The media type for the reply: the one of `offered` that Accept likes best, the earlier one if several."""
    header = ",".join(request.headers.getall("Accept", []))
    if not header.strip():
        return offered[0]
    liked = list(_qualities(header))
    best = max(offered, key=lambda kind: _quality_of(kind, liked))
    if _quality_of(best, liked) <= 0:
        raise NotAcceptable(f"the reply can be {_either(offered)}", available=list(offered))
    return best


def _qualities(header: str) -> Iterator[tuple[str, float]]:
    """The elements of an Accept or Accept-Encoding header with their q-values; malformed ones are left out."""
    for element in header.split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        if name and re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", quality):
            yield name, float(quality)


def _quality_of(name: str, liked: Sequence[tuple[str, float]]) -> float:
    """How much a media type or encoding is liked: what is said most specifically counts."""
    for pattern in (name, name.partition("/")[0] + "/*", "*/*" if "/" in name else "*"):
        found = [quality for liked_name, quality in liked if liked_name == pattern]
        if found:
            return max(found)
    return 0.0


def _either(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def operation_id(request: web.Request) -> str:
    """The header `Operation-Id`, which a retry repeats; a new one if there is none."""
    given = request.headers.get(OPERATION_HEADER)
    if given is None:
        return uuid.uuid4().hex  # nobody can repeat it, so that it need not say when it was made
    if not re.fullmatch(r"[!-~]{1,128}", given):
        raise InvalidRequest.field(OPERATION_HEADER, "must be 1 to 128 visible ASCII characters, such as a UUID")
    return given


# ---- bodies of requests ----------------------------------------------------------------------------------------------


def ticket_of(request: web.Request) -> budget.Ticket:
    """What the request takes of the node's budget of bytes."""
    ticket: budget.Ticket = request.get(TICKET, budget.UNBOUNDED)
    return ticket


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body, inflated; `PayloadTooLarge` as soon as it is known to be longer than `limit` bytes.

    It is taken from the node's budget as it grows, so that what inflates to a multiple is refused in time.
    """
    too_large = PayloadTooLarge(f"the body must be at most {limit} bytes, after decompression; send it in parts")
    if (request.content_length or 0) > limit:
        raise too_large
    body, ticket = bytearray(), ticket_of(request)
    async for chunk in _inflated(request, _arriving(request, _Steady())):
        if len(body) + len(chunk) > limit:
            raise too_large
        await ticket.hold_more(budget.WEIGHT * len(chunk))
        body += chunk
    return bytes(body)


async def body_chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it arrives, inflated, in pieces of bounded size. `InvalidRequest` if it is damaged or cut off."""
    async for piece in _inflated(request, _arriving(request, _Pausing())):
        yield piece


async def _inflated(request: web.Request, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    inflater = _inflater(request.headers.get("Content-Encoding", "identity"))
    try:
        async for chunk in chunks:
            if inflater is None:
                yield chunk
                continue
            pieces = inflater.feed(chunk)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
    except web.RequestPayloadError:
        raise InvalidRequest("the body does not arrive as its headers say: it is cut off or badly framed") from None
    if inflater is not None:
        inflater.close()


class _Pausing:
    """The patience with a body of any length: it may pause for as long, each time."""

    def left(self) -> float:
        """Seconds that are waited for the next bytes."""
        return PATIENCE

    def came(self, bytes_: int, seconds: float) -> None:
        """So many bytes came after so many seconds of waiting."""


class _Steady:
    """The patience with a body that is read whole, which is held in memory meanwhile: so long in all."""

    def __init__(self) -> None:
        self._left = WHOLE

    def left(self) -> float:
        """Seconds that are waited for the next bytes."""
        return self._left

    def came(self, bytes_: int, seconds: float) -> None:
        """So many bytes came after so many seconds of waiting."""
        self._left = min(self._left - seconds + bytes_ / SLOWEST, WHOLE)


async def _arriving(request: web.Request, patience: _Pausing | _Steady) -> AsyncIterator[bytes]:
    try:
        while True:
            began = time.monotonic()
            async with asyncio.timeout(max(patience.left(), 0.0)):
                chunk = await request.content.readany()
            if not chunk:
                return
            patience.came(len(chunk), time.monotonic() - began)
            yield chunk
    except TimeoutError:
        raise RequestTimeout(
            f"the body arrives too slowly, or has stopped: the next bytes did not come within {patience.left():.0f} s. "
            "What of it was not acknowledged is not stored"
        ) from None


class _Decompressor(Protocol):
    """What zlib and zstd have in common."""

    @property
    def eof(self) -> bool:
        """Whether the end of the compressed data was seen."""

    @property
    def unused_data(self) -> bytes:
        """What follows it."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most so many bytes more."""


class _Gzip:
    """zlib's decompressor, which hands back the input that it did not get to, made to keep it as zstd's does."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _zstd() -> _Decompressor:
    """Refuses windows above 8 MiB, as RFC 9659 has it: they are memory that a few bytes could ask for."""
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23})


class _Inflater:
    """Inflates one gzip member or zstd frame."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._decompressor: _Decompressor = _Gzip() if encoding == "gzip" else _zstd()
        self._began = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the chunk inflates to, in pieces."""
        self._began = self._began or bool(chunk)
        if self._decompressor.eof and chunk:
            raise self._damaged("bytes follow its end")
        while not self._decompressor.eof:
            try:
                piece = self._decompressor.decompress(chunk, PIECE)
            except (zlib.error, zstd.ZstdError) as error:
                raise self._damaged(str(error)) from None
            chunk = b""
            if self._decompressor.unused_data:
                raise self._damaged("bytes follow its end")
            if not piece:
                return
            yield piece

    def close(self) -> None:
        """Complain if the end is missing."""
        if self._began and not self._decompressor.eof:
            raise self._damaged("it is cut off")

    def _damaged(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"the body is not what Content-Encoding says, {self._encoding}: {why}")


def _inflater(header: str) -> _Inflater | None:
    named = [name for part in header.split(",") if (name := part.strip().lower()) not in {"", "identity"}]
    if not named:
        return None
    encoding = named[0].removeprefix("x-")
    if len(named) > 1 or encoding not in _ENCODINGS:
        raise UnsupportedMediaType(f"Content-Encoding must be {_either(_ENCODINGS)}, is {header}")
    return _Inflater(encoding)


# ---- bodies of replies -----------------------------------------------------------------------------------------------


@web.middleware
async def compress(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Compress what a handler answers, if the client takes it and it is large enough to be worth it."""
    response = await handler(request)
    body = getattr(response, "body", None)
    if not isinstance(body, bytes) or len(body) < WORTH_COMPRESSING or "Content-Encoding" in response.headers:
        return response
    assert isinstance(response, web.Response)
    response.headers.add("Vary", "Accept-Encoding")
    liked = list(_qualities(",".join(request.headers.getall("Accept-Encoding", []))))
    encoding = max(("zstd", "gzip"), key=lambda name: _quality_of(name, liked))
    if _quality_of(encoding, liked) > 0:
        response.body = await asyncio.to_thread(_compressed, body, encoding)
        response.headers["Content-Encoding"] = encoding
    return response


def _compressed(body: bytes, encoding: str) -> bytes:
    """Fast rather than small: vectors hardly shrink."""
    if encoding == "zstd":
        return zstd.compress(body, level=1)
    packer: Any = zlib.compressobj(level=1, wbits=31)
    packed: bytes = packer.compress(body) + packer.flush()
    return packed

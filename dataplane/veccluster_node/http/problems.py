"""Every error leaves as `application/problem+json` (RFC 9457), by one middleware, which must be the outermost."""

import json
import uuid
from typing import Any

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from veccluster.errors import InvalidRequest, MethodNotAllowed, NotFound, PayloadTooLarge, VecClusterError
from veccluster_node.http.negotiation import PROBLEM

log = structlog.get_logger(__name__)


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors with problem documents: ours as they say, aiohttp's likewise, anything else as an incident."""
    try:
        return await handler(request)
    except VecClusterError as error:
        return problem_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return problem_response(_of_aiohttp(request, error), _kept_headers(error))
    except ConnectionError:
        raise  # the client is gone; there is nobody to answer
    except Exception as error:  # noqa: BLE001 - the last resort: nothing of it reaches the client
        return problem_response(_incident(request, error))


def problem_response(error: VecClusterError, headers: dict[str, str] | None = None) -> web.Response:
    """The reply that says what `error` says."""
    problem = _shortened(error.problem())
    response = web.Response(status=problem["status"], body=_encode(problem), content_type=PROBLEM, headers=headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


LONGEST = 1_000
"""Characters of a text in a problem: it may quote what somebody sent."""


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[: LONGEST - 3] + "..."
    if isinstance(value, dict):
        return {name: _shortened(held) for name, held in value.items()}
    return [_shortened(held) for held in value] if isinstance(value, list | tuple) else value


def _encode(problem: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(problem)
    except orjson.JSONEncodeError:  # it quotes half a surrogate pair that somebody sent
        return json.dumps(problem, default=str).encode()


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> VecClusterError:
    if isinstance(error, web.HTTPNotFound):
        return NotFound(f"there is no {request.path}; /openapi.json lists what there is")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.path} takes {allowed}, not {request.method}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge("the body is too large; send it in parts")
    if error.status < 500:
        return _Refused(error)
    return VecClusterError(error.reason)


class _Refused(InvalidRequest):
    """What aiohttp refuses by itself, with its own status (417 for an Expect that nobody knows)."""

    slug = "refused"

    def __init__(self, error: web.HTTPException) -> None:
        super().__init__(error.text or error.reason)
        self._status, self._title = error.status, error.reason

    def problem(self) -> dict[str, Any]:
        return {**super().problem(), "status": self._status, "title": self._title}


def _kept_headers(error: web.HTTPException) -> dict[str, str]:
    return {name: error.headers[name] for name in ("Allow",) if name in error.headers}


def _incident(request: web.Request, error: Exception) -> VecClusterError:
    """An error that nobody foresaw: logged whole, answered with a number to find it by."""
    incident = uuid.uuid4().hex[:12]
    log.error("incident", incident=incident, method=request.method, path=request.path, exc_info=error)
    return VecClusterError(
        f"something unforeseen went wrong in this node; its log has more under {incident}", incident=incident
    )

"""Kubernetes Events: sentences that `kubectl describe` shows under an object. They expire by themselves."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from veccluster_operator.adapters.kube import EVENT, ApiError, KubeApi

MAX_MESSAGE = 1024

log = structlog.get_logger(__name__)


class Recorder:
    """Writes events. One that cannot be written costs nothing but itself."""

    def __init__(self, api: KubeApi, replica: str) -> None:
        self._api = api
        self._replica = replica

    async def note(self, about: Mapping[str, Any], reason: str, message: str, *, warning: bool = False) -> None:
        """Tell it; the same again within a minute is told once."""
        now = datetime.now(UTC)
        metadata = about["metadata"]
        said = f"{metadata['uid']} {reason} {message} {now:%Y%m%d%H%M}"
        stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        name = f"{metadata['name'][:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        event = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "source": {"component": "veccluster-operator", "host": self._replica},
            "reportingComponent": "veccluster-operator",
            "reportingInstance": self._replica,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
        try:
            await self._api.create(EVENT, event)
        except ApiError as error:
            if not error.is_conflict:
                log.warning("event_not_written", reason=error.message)

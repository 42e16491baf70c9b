"""The Kubernetes API as the operator uses it: objects in and out are plain JSON values, every write is fenced.

A write is sent only while this replica is the active one for certain, and its time-out ends before that certainty
does (`Fence`); an update of what was observed carries its resourceVersion or uid, so that what another replica has
changed since is not overwritten.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import aiohttp
from kubernetes_asyncio import config as kubeconfig
from kubernetes_asyncio.client import ApiClient, Configuration

FIELD_MANAGER = "veccluster-operator"
REQUEST_TIMEOUT = 10.0
WATCH_SECONDS = 290
"""After which the API server ends a watch, so that a connection that died silently is noticed."""

Manifest = dict[str, Any]
"""An object as it comes from the API server; what goes in may be any mapping."""


class Fence(Protocol):
    """Whether this replica may act."""

    def remaining(self) -> float:
        """Seconds for which this replica is certainly the only one that acts; 0 when it is not."""


class NotActive(Exception):
    """This replica is not the active one (any more): nothing was sent."""


class ApiError(Exception):
    """The API server refused, or could not be asked (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def is_conflict(self) -> bool:
        """Somebody changed the object since it was observed."""
        return self.status == 409

    @property
    def is_invalid(self) -> bool:
        """The object cannot be as it was asked for: asking again does not help.

        So is a field of a wrong type in a server-side apply, although the API server calls that its own fault.
        """
        wrong_type = self.status == 500 and "failed to create typed patch object" in self.message
        return wrong_type or self.status in (400, 403, 422)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where it is in the API."""

    name: str
    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of all objects, of those in a namespace, of one, or of a part of one."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/" + "/".join(parts)


VEC_CLUSTER = Kind("VecCluster", "veccluster.io", "v1alpha1", "vecclusters")
VEC_COLLECTION = Kind("VecCollection", "veccluster.io", "v1alpha1", "veccollections")
STATEFUL_SET = Kind("StatefulSet", "apps", "v1", "statefulsets")
SERVICE = Kind("Service", "", "v1", "services")
CONFIG_MAP = Kind("ConfigMap", "", "v1", "configmaps")
SERVICE_ACCOUNT = Kind("ServiceAccount", "", "v1", "serviceaccounts")
POD = Kind("Pod", "", "v1", "pods")
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
DISRUPTION_BUDGET = Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets")
NETWORK_POLICY = Kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies")
EVENT = Kind("Event", "", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases")
NODE = Kind("Node", "", "v1", "nodes", namespaced=False)

BUILT = (STATEFUL_SET, SERVICE, CONFIG_MAP, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)
"""What the operator creates itself; pods and claims are made by StatefulSets."""
_BY_NAME = {kind.name: kind for kind in (*BUILT, POD, CLAIM)}


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of a manifest that the operator built."""
    return _BY_NAME[manifest["kind"]]


class KubeApi:
    """One connection pool to the API server. Reads need no fence; writes are refused without one that holds."""

    def __init__(self, client: ApiClient, count: Callable[[str], None], fence: Fence | None = None) -> None:
        self._client = client
        self._count = count
        self._fence = fence

    @classmethod
    async def connect(cls, count: Callable[[str], None]) -> "KubeApi":
        """With the pod's service account, or the kubeconfig of whoever runs the operator by hand.

        `count` is called with the method of each request.
        """
        configuration = Configuration()
        try:
            kubeconfig.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except kubeconfig.ConfigException:
            await kubeconfig.load_kube_config(client_configuration=configuration)
        client = ApiClient(configuration)
        client.user_agent = f"veccluster-operator/{version('veccluster')}"
        return cls(client, count)

    def fenced(self, fence: Fence) -> "KubeApi":
        """The same connections, with the right to write for as long as `fence` says."""
        return KubeApi(self._client, self._count, fence)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def require_active(self) -> None:
        """For what is done elsewhere than in Kubernetes: `NotActive` unless this replica may act."""
        if self._fence is None or self._fence.remaining() <= 0:
            raise NotActive("this replica is not the active one")

    # Reading

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """One object, None when there is none."""
        try:
            return await self._send("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: Kind, namespace: str | None = None, selector: str | None = None) -> list[Manifest]:
        """All objects that `selector` matches, with kind and apiVersion filled in."""
        reply = await self._send("GET", kind.path(namespace), query=_query(labelSelector=selector))
        return [{**item, "kind": kind.name, "apiVersion": kind.api_version} for item in reply["items"]]

    async def serves(self, kinds: Sequence[Kind]) -> bool:
        """Whether the API server knows these kinds, all of one group."""
        groups = await self._send("GET", "/apis")
        if kinds[0].group not in {group["name"] for group in groups["groups"]}:
            return False
        served = await self._send("GET", f"/apis/{kinds[0].api_version}")
        return {kind.plural for kind in kinds} <= {resource["name"] for resource in served["resources"]}

    async def changes(self, kind: Kind, namespace: str | None, selector: str | None) -> AsyncIterator[Manifest]:
        """Objects as they change, until the API server ends the watch; every one that there is comes first."""
        query = _query(labelSelector=selector, watch="true", timeoutSeconds=str(WATCH_SECONDS))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT, sock_read=WATCH_SECONDS + 30)
        response = await self._open("GET", kind.path(namespace), query, None, None, timeout)
        try:
            await _raise_for(response)
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return  # the history is gone: the caller lists again
                yield event["object"]
        finally:
            response.release()

    # Writing

    async def apply(self, manifest: Manifest) -> Manifest:
        """Create the object, or make the fields that the manifest names what it says; others' fields stay."""
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"])
        query = _query(fieldManager=FIELD_MANAGER, force="true")
        return await self._write("PATCH", path, manifest, "application/apply-patch+yaml", query)

    async def write_status(self, kind: Kind, observed: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Replace the status, unless the object was changed since it was observed."""
        metadata = {k: observed["metadata"][k] for k in ("name", "namespace", "resourceVersion", "uid")}
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, "status": status}
        path = kind.path(metadata["namespace"], metadata["name"], "status")
        await self._write("PUT", path, {**observed, **body}, "application/json")

    async def merge(self, kind: Kind, observed: Mapping[str, Any], change: Mapping[str, Any]) -> None:
        """Merge `change` into an object, if it is still the one that was observed (by uid)."""
        metadata = {**change.get("metadata", {}), "uid": observed["metadata"]["uid"]}
        path = kind.path(observed["metadata"].get("namespace"), observed["metadata"]["name"])
        await self._write("PATCH", path, {**change, "metadata": metadata}, "application/merge-patch+json")

    async def delete(self, kind: Kind, observed: Mapping[str, Any]) -> None:
        """Delete an object if it is still the one that was observed; gone already is fine."""
        metadata = observed["metadata"]
        body = {"preconditions": {"uid": metadata["uid"]}, "propagationPolicy": "Background"}
        try:
            await self._write("DELETE", kind.path(metadata["namespace"], metadata["name"]), body, "application/json")
        except ApiError as error:
            if error.status != 404:
                raise

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create an object; 409 when there is one of that name."""
        return await self._write("POST", kind.path(manifest["metadata"]["namespace"]), manifest, "application/json")

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace an object; 409 unless its resourceVersion is the manifest's."""
        metadata = manifest["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        return await self._write("PUT", path, manifest, "application/json")

    async def _write(
        self, method: str, path: str, body: Mapping[str, Any], content_type: str, query: dict[str, str] | None = None
    ) -> Manifest:
        timeout = REQUEST_TIMEOUT
        if self._fence is not None:
            timeout = min(timeout, self._fence.remaining())
        if self._fence is None or timeout <= 0:
            raise NotActive(f"{method} {path} was not sent: this replica is not the active one")
        return await self._send(method, path, query, body, content_type, timeout)

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Manifest:
        limits = aiohttp.ClientTimeout(total=timeout)
        response = await self._open(method, path, query, body, content_type, limits)
        async with response:
            await _raise_for(response)
            found: Manifest = await response.json(content_type=None)
            return found

    async def _open(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str | None,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        self._count(method)
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        try:
            response: aiohttp.ClientResponse = await self._client.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"the API server gave no answer: {error!r}") from error
        return response


async def _raise_for(response: aiohttp.ClientResponse) -> None:
    """`ApiError` with what the API server says, unless the answer is good."""
    if response.status < 300:
        return
    raw = await response.read()
    try:
        said = json.loads(raw)
    except ValueError:
        said = {}
    message = said.get("message") or raw[:300].decode(errors="replace")
    raise ApiError(response.status, said.get("reason", ""), message)


def _query(**given: str | None) -> dict[str, str]:
    return {key: value for key, value in given.items() if value is not None}


async def follow(
    api: KubeApi, kind: Kind, namespace: str | None, selector: str | None, pause: float
) -> AsyncIterator[Manifest]:
    """Objects as they change, for ever; after a failure all of them again."""
    while True:
        try:
            async for changed in api.changes(kind, namespace, selector):
                yield changed
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError):
            await asyncio.sleep(pause)

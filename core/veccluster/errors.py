"""Every error that a user can meet, with its problem type (RFC 9457).

Adapters turn library exceptions into these at the edge; the HTTP layer turns them into `application/problem+json`
in one middleware; the Python client turns that back into the same class. So one error has one name everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

PROBLEM_BASE = "https://veccluster.io/problems/"


class VecClusterError(Exception):
    """Base of all errors of VecCluster.

    `detail` is one sentence for a person; `extra` holds further members of the problem document
    (`errors`, `missing_shards`, ...), which are part of the interface of the class that sets them.
    """

    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retry_after: ClassVar[int | None] = None

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: dict[str, Any] = extra

    @property
    def type(self) -> str:
        """The URI that names this kind of problem."""
        return PROBLEM_BASE + self.slug

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 document of this error."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }


class InvalidRequest(VecClusterError):
    """Something in the request is wrong; `errors` names each field and what would be right."""

    slug, title, status = "invalid-request", "Invalid request", 400

    def __init__(self, detail: str, errors: Iterable[Mapping[str, Any]] = (), **extra: Any) -> None:
        super().__init__(detail, errors=[dict(e) for e in errors], **extra)

    @property
    def errors(self) -> Sequence[Mapping[str, Any]]:
        """One `{field, reason}` each; for an item of a batch also `index` and `id`."""
        found: Sequence[Mapping[str, Any]] = self.extra["errors"]
        return found

    @classmethod
    def field(cls, field: str, reason: str) -> "InvalidRequest":
        """An error about one field."""
        return cls(f"{field}: {reason}", [{"field": field, "reason": reason}])


class InvalidSpec(InvalidRequest):
    """A VecCluster file asks for something that is wrong or not there yet; each field is named."""

    slug, title = "invalid-spec", "Invalid VecCluster"


class NotFound(VecClusterError):
    """There is no such route or resource."""

    slug, title, status = "not-found", "Not found", 404


class CollectionNotFound(NotFound):
    """There is no collection of this name."""

    slug, title = "collection-not-found", "Collection not found"


class VectorNotFound(NotFound):
    """The collection holds no vector with this id."""

    slug, title = "vector-not-found", "Vector not found"


class Forbidden(VecClusterError):
    """The request comes from a web page, or by a name, that nobody has allowed."""

    slug, title, status = "forbidden", "Forbidden", 403


class MethodNotAllowed(VecClusterError):
    """The route exists, with other methods."""

    slug, title, status = "method-not-allowed", "Method not allowed", 405


class NotAcceptable(VecClusterError):
    """None of the media types in Accept can be given."""

    slug, title, status = "not-acceptable", "Not acceptable", 406


class RequestTimeout(VecClusterError):
    """The request arrives too slowly, or has stopped arriving."""

    slug, title, status = "request-timeout", "Request timeout", 408


class Conflict(VecClusterError):
    """The resource exists already and differs."""

    slug, title, status = "conflict", "Conflict", 409


class RecoveryRefused(VecClusterError):
    """A shard's loss cannot be accepted: it can be served, or it is not as it was when that was confirmed."""

    slug, title, status = "recovery-refused", "Recovery refused", 409


class OperationForgotten(VecClusterError):
    """The write's operation id is older than what the shard remembers: this request did nothing, and nobody knows
    whether an earlier one with the same id was carried out. Look, and ask with a new id.
    """

    slug, title, status = "operation-forgotten", "Operation forgotten", 409


class PayloadTooLarge(VecClusterError):
    """The body is over the limit of this route."""

    slug, title, status = "payload-too-large", "Payload too large", 413


class UnsupportedMediaType(VecClusterError):
    """The body's Content-Type or Content-Encoding is not one that this route reads."""

    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class Unavailable(VecClusterError):
    """It cannot be done now; the same request may succeed later."""

    slug, title, status, retry_after = "unavailable", "Unavailable", 503, 1


class ShardsUnavailable(Unavailable):
    """No replica of some shards can answer; `missing_shards` names them."""

    slug, title = "shards-unavailable", "Shards unavailable"


class NotPrimary(Unavailable):
    """This replica does not order the shard's writes now: another one does, or is about to. Nothing was stored."""

    slug, title = "not-primary", "Not the primary"


class TooFewReplicas(Unavailable):
    """Fewer replicas of a shard are in sync than the write asks for. Nothing was stored."""

    slug, title = "too-few-replicas", "Too few replicas in sync"


class ReplicaBehind(Unavailable):
    """This replica is not in sync, or has not applied what the read must show; another one may have."""

    slug, title = "replica-behind", "Replica behind"


class MetadataUnavailable(Unavailable):
    """etcd cannot be reached, and this request needs it."""

    slug, title = "metadata-unavailable", "Metadata store unavailable"


class Unreachable(Unavailable):
    """No address of the cluster answered in time. Raised by the client; a node never answers with it."""

    slug, title = "unreachable", "Unreachable"


class MetadataRefused(VecClusterError):
    """etcd answered, and the answer is no: a password, a permission or a limit is wrong; asking again will not help."""

    slug, title, status = "metadata-refused", "Metadata store refused the request", 500


class LeaseLost(Unavailable):
    """The lease on which this process acted has ended: it is no longer what it was elected or registered as."""

    slug, title = "lease-lost", "Lease lost"


class OutcomeUnknown(VecClusterError):
    """The request was sent and no answer came: it may or may not have been carried out.

    Sending it again with the same operation id is safe.
    """

    slug, title, status, retry_after = "outcome-unknown", "Outcome unknown", 504, 1


class InsufficientStorage(VecClusterError):
    """A disk is full or a limit of memory is reached: upserts are refused, reads and deletes go on. Or a new collection
    does not fit into the files that nodes may open.
    """

    slug, title, status, retry_after = "insufficient-storage", "Insufficient storage", 507, 30


class StorageCorrupt(Unavailable):
    """Data on a disk is damaged and no other copy could heal it; the shard is read-only."""

    slug, title = "storage-corrupt", "Storage corrupt"


def _all_types(base: type[VecClusterError]) -> Iterable[type[VecClusterError]]:
    yield base
    for sub in base.__subclasses__():
        yield from _all_types(sub)


def from_problem(problem: Mapping[str, Any]) -> VecClusterError:
    """The exception that a problem document stands for; `VecClusterError` itself for a type not known here."""
    # A class without a slug of its own is a private refinement of the one that it inherits from.
    by_type = {PROBLEM_BASE + t.slug: t for t in _all_types(VecClusterError) if "slug" in vars(t)}
    extra = {k: v for k, v in problem.items() if k not in {"type", "title", "status", "detail"}}
    detail = str(problem.get("detail") or problem.get("title") or "no detail given")
    return by_type.get(str(problem.get("type")), VecClusterError)(detail, **extra)

"""Where etcd is and how to speak to it, checked once."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from veccluster.errors import InvalidSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """Everything that the client is told. Times are seconds. Raises `InvalidSpec` naming the field that is wrong."""

    endpoints: tuple[str, ...]
    """Each "host:port", "http://host:port" or "https://host:port"; an IPv6 address in brackets."""
    ca_file: Path | None = None
    """PEM; None trusts the usual authorities."""
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    username_file: Path | None = None
    password_file: Path | None = None
    """Files that hold them instead, read at each login: what a Secret holds may change."""
    timeout: float = 5.0
    """An operation that is given no timeout of its own ends after this, all retries included."""
    attempt_timeout: float = 1.0
    """A read that one member does not answer within this is asked of the next."""
    connect_timeout: float = 1.0
    """A member that has no connection within this is left for the next."""
    watch_silence: float = 2.0
    """A watch that hears nothing for so long asks the member whether it is there ..."""
    watch_patience: float = 2.0
    """... and moves to another when no answer comes within this."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise InvalidSpec.field("endpoints", "must name at least one etcd member as host:port")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if len({e.startswith("https://") for e in self.endpoints}) > 1:
            raise InvalidSpec.field("endpoints", "must be all https:// or none")
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidSpec.field("cert_file", "must come together with key_file")
        if self.ca_file and any(e.startswith("http://") for e in self.endpoints):
            raise InvalidSpec.field("ca_file", "has no meaning for http:// endpoints; write https://")
        self._check_login()
        for name in ("timeout", "attempt_timeout", "connect_timeout", "watch_silence", "watch_patience"):
            if not getattr(self, name) > 0:
                raise InvalidSpec.field(name, f"must be more than 0 seconds, is {getattr(self, name)}")

    def _check_login(self) -> None:
        for name in ("username", "password"):
            if getattr(self, name) is not None and getattr(self, name + "_file") is not None:
                raise InvalidSpec.field(name, f"must be left out when {name}_file is given: it is one or the other")
        if (self.username or self.username_file) and not (self.password or self.password_file):
            raise InvalidSpec.field("username", "must come together with a password")
        if (self.password or self.password_file) and not self.logs_in:
            raise InvalidSpec.field("password", "must come together with a username")

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted: an https:// endpoint or any TLS file says so."""
        return self.endpoints[0].startswith("https://") or self.ca_file is not None or self.cert_file is not None

    @property
    def logs_in(self) -> bool:
        """Whether etcd is told who we are."""
        return self.username is not None or self.username_file is not None

    def login(self) -> tuple[str, str] | None:
        """User name and password as they are now; None without. `InvalidSpec` when a file has none."""
        if not self.logs_in:
            return None
        username = _content("username_file", self.username_file) if self.username_file else self.username
        password = _content("password_file", self.password_file) if self.password_file else self.password
        return username or "", password or ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints as host:port."""
        return tuple(e.split("://", 1)[-1].rstrip("/") for e in self.endpoints)


def missing(path: Path) -> str:
    """That a file is not there, and whether anything is beside it: of a Secret, a key may be missing or all of it."""
    try:
        beside = [other for other in path.parent.iterdir() if not other.name.startswith(".")]
    except OSError:
        beside = []
    return f"{path} is missing" + ("" if beside else f": {path.parent} is empty or does not exist")


def _content(field: str, path: Path) -> str:
    try:
        content = path.read_text().rstrip("\r\n")
    except FileNotFoundError as error:
        raise InvalidSpec.field(field, missing(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidSpec.field(field, f"{path} cannot be read: {reason}") from error
    if not content:
        raise InvalidSpec.field(field, f"{path} is empty")
    return content


def _check_endpoint(endpoint: str) -> None:
    if "://" in endpoint and not endpoint.startswith(("http://", "https://")):
        raise InvalidSpec.field("endpoints", f"{endpoint!r} must be host:port, http://host:port or https://host:port")
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        good = bool(parts.hostname and parts.port) and parts.path in ("", "/") and not parts.username
    except ValueError:
        good = False
    if not good:
        # Not echoed whole: a URL with a password in it is one way to get here.
        raise InvalidSpec.field(
            "endpoints", f"{parts.hostname or 'an entry'!r} must be given as host:port, port 1 to 65535"
        )

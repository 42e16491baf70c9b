"""The addresses of a cluster: which one is asked next. No I/O and no clock: the time comes with each question.

Reads of vectors take turns over the nodes that answer, each going to one that has the least to do for this client.
Everything else stays with one node while that answers, so that what a client is told of the cluster is one node's view.
A node that gave no answer is avoided until it has given one to a question that nobody waits for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from yarl import URL

from veccluster import backoff
from veccluster.client.values import a_list, a_text
from veccluster.errors import InvalidRequest

AVOIDED = 1.0
LONGEST_AVOIDED = 15.0
"""Seconds after which a node that failed is looked at again: the first time, and at most."""


@dataclass(slots=True, eq=False)
class Address:
    """One address, and what this client knows of it."""

    url: URL
    outstanding: int = 0
    """Requests that it has not answered yet."""
    turn: int = 0
    """When it was last asked, in turns."""
    failures: int = 0
    """Since it last answered: a request, and every look at it."""
    failed: int = 0
    """When it last failed, in turns."""
    look_at: float = 0.0
    """When to look at it again, if it has failed."""

    def __str__(self) -> str:
        return str(self.url).rstrip("/")


@dataclass(slots=True)
class Addresses:
    """All of them. `current` is asked whatever is not spread, until it fails."""

    known: Sequence[Address]
    current: int = 0
    _turn: int = field(default=0)

    @classmethod
    def parse(cls, given: str | Sequence[str]) -> "Addresses":
        """One address or several, `host:port` or `http(s)://host:port`; raises InvalidRequest."""
        texts = [given] if isinstance(given, str) else a_list(given, "servers")
        if not texts:
            raise InvalidRequest.field("servers", "must name at least one address, as http://127.0.0.1:8001")
        return cls([Address(url) for url in dict.fromkeys(map(_parse, texts))])

    def choose(self, *, spread: bool) -> Address:
        """Whom to ask next; where all have failed, the one that did so the longest time ago."""
        answering = [address for address in self.known if not address.failures]
        if not answering:
            return min(self.known, key=lambda address: address.failed)
        if spread:
            return min(answering, key=lambda address: (address.outstanding, address.turn))
        while self.known[self.current].failures:
            self.current = (self.current + 1) % len(self.known)
        return self.known[self.current]

    def asked(self, address: Address) -> None:
        """A request goes to it; `answered` or `failed` follows, or `left`."""
        self._turn += 1
        address.turn = self._turn
        address.outstanding += 1

    def left(self, address: Address) -> None:
        """A request has come to its end, whatever that was."""
        address.outstanding -= 1

    def answered(self, address: Address) -> None:
        """It is there."""
        address.failures = 0

    def failed(self, address: Address, now: float) -> None:
        """It gave no answer, or none that is of use; many requests that fail at once say that once."""
        self._turn += 1
        address.failed = self._turn
        if address.failures and now < address.look_at < float("inf"):
            return
        address.failures += 1
        address.look_at = now + backoff.pause(AVOIDED, address.failures, LONGEST_AVOIDED)

    def to_look_at(self, now: float) -> Iterable[Address]:
        """Those that failed a while ago, each once: until `failed` or `answered` follows it is not named again."""
        for address in self.known:
            if address.failures and address.look_at <= now:
                address.look_at = float("inf")
                yield address

    def __len__(self) -> int:
        return len(self.known)

    def __str__(self) -> str:
        return " or ".join(map(str, self.known))


def _parse(text: str) -> URL:
    a_text(text, "servers")
    try:
        url = URL(text if "://" in text else f"http://{text}")
        valid = url.scheme in {"http", "https"} and url.host and url.port
    except ValueError:
        valid = False
    if not valid:
        raise InvalidRequest.field("servers", f"must be like http://127.0.0.1:8001, is {text!r}")
    return url.origin()

"""What slow filters are made of: a collection of its own that takes long to look at, and clients that do not wait."""

import itertools
import random
import time
from collections.abc import Sequence

import requests

COLLECTION = "slow-to-filter"
ROWS, TEXT = 4000, 1000
"""Vectors, and characters of metadata of each."""
CLIENTS = 8
CLAUSES = 200
PATIENCE = 1.0
"""Seconds after which those clients give up."""
ANSWERED = 5.0
"""Seconds within which a get is answered."""

_SLOW = {"filter": {"$or": [{'a"b': -1 - n} for n in range(CLAUSES)]}}
"""No index has a key with a quotation mark in it, and SQLite cannot look at it by itself."""


def fill(urls: Sequence[str]) -> None:
    """Make the collection, unless it is there."""
    at = f"{urls[0]}/v1/collections/{COLLECTION}"
    made = requests.put(at, json={"dimension": 4, "metric": "l2", "shards": 1}, timeout=60)
    made.raise_for_status()
    if made.status_code != 201:
        return
    rows = ({"id": f"row-{n}", "vector": [n, 1, 0, 0], "metadata": {'a"b': n, "text": "x" * TEXT}} for n in range(ROWS))
    for part in iter(lambda: list(itertools.islice(rows, 500)), []):
        requests.post(f"{at}/vectors", json={"vectors": part}, timeout=60).raise_for_status()


def count_until(ends: float, chance: random.Random, urls: Sequence[str]) -> None:
    """Count, at any node, and give up, again and again."""
    while time.monotonic() < ends:
        try:
            requests.post(f"{chance.choice(urls)}/v1/collections/{COLLECTION}/count", json=_SLOW, timeout=PATIENCE)
        except requests.RequestException:
            continue


def get_until(ends: float, urls: Sequence[str]) -> tuple[list[float], list[str]]:
    """Get rows at every node in turn: the seconds that each get took, and what was no answer in time."""
    took: list[float] = []
    errors: list[str] = []
    with requests.Session() as session:
        for number, url in enumerate(itertools.cycle(urls)):
            began = time.monotonic()
            if began >= ends:
                return took, errors
            try:
                at = f"{url}/v1/collections/{COLLECTION}/vectors/row-{number * 7 % ROWS}"
                reply = session.get(at, timeout=ANSWERED)
                if reply.status_code != 200:
                    errors.append(f"{url}: {reply.status_code} {reply.text}")
            except requests.RequestException as error:
                errors.append(f"{url}: {type(error).__name__}: {error}")
            took.append(time.monotonic() - began)
            time.sleep(0.02)
    return took, errors

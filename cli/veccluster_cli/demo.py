"""`veccluster demo`: a three-node cluster on this machine, shown in words.

The cluster of examples/laptop.yaml loads 12,000 word embeddings (examples/wordnet) and is asked about words that it has
never seen. Whatever happens, the end of the demo is the end of all its processes, and of the directory they wrote to.
"""

import gzip
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from veccluster.client import Client, CollectionInfo, Hit, Progress
from veccluster_cli.commands.cluster import etcd_line, read_cluster, show_start
from veccluster_cli.local import LocalFailure, changes, ports, runtime
from veccluster_cli.local.state import Desired, StateDirectory, default_directory
from veccluster_cli.options import program
from veccluster_cli.output import make_console, progress_bar

COLLECTION = "words"
SHOWN_WORDS = ("eagle", "skim milk", "bottom quark", "city hall")
FILTERED = (("bread", {"lexname": "noun.artifact"}, "only artifacts"), ("fury", {"pos": "v"}, "only verbs"))
NEIGHBOURS = 4
K = 10
ROUNDS = 3
START_SECONDS = 90.0
BUILD_SECONDS = 20.0
PIPE_WIDTH = 112


@dataclass(frozen=True, slots=True)
class Words:
    """Words with their vectors, float32 (n, 384), and metadata, row by row."""

    vectors: NDArray[np.float32]
    metadata: Sequence[Mapping[str, Any]]

    def index_of(self, word: str) -> int:
        """The row of a word."""
        return next(row for row, meta in enumerate(self.metadata) if meta["words"][0] == word)


class Stage:
    """Where the demo speaks: numbered headings, and lines cut to the width of the reader."""

    def __init__(self) -> None:
        self.console: Console = make_console()
        self._width = self.console.width if self.console.is_terminal else PIPE_WIDTH
        self._number = 0

    def heading(self, text: str) -> None:
        """Begin the next part."""
        self._number += 1
        self.console.print(f"\n[bold cyan]{self._number}[/]  [bold]{escape(text)}[/]", markup=True)

    def say(self, text: str, style: str = "") -> None:
        """A paragraph, folded."""
        for line in textwrap.wrap(text, self._width - 4):
            self.console.print(f"   {line}", style=style)

    def line(self, text: str, style: str = "") -> None:
        """A line, cut."""
        cut = text if len(text) <= self._width else text[: self._width - 1] + "…"
        self.console.print(cut, style=style, no_wrap=True)


def run(*, keep: bool) -> None:
    """The whole demo; `keep` leaves the cluster running at the end."""
    examples = find_examples()
    stage = Stage()
    stage.console.print(
        "[bold]VecCluster[/]: three nodes on this machine answer questions about 12,000 words", markup=True
    )
    cluster = examples / "laptop.yaml"
    max_tail = read_cluster(cluster).spec.tuning.max_tail
    with _cluster(stage, cluster, keep=keep) as desired, Client(desired.servers) as client:
        held_out = read_words(examples / "wordnet", "held-out.npy", "held-out.jsonl")
        _load(stage, client, read_words(examples / "wordnet", "vectors.npy", "words.jsonl.gz"))
        _neighbours(stage, client, held_out)
        _filtered(stage, client, held_out)
        _change(stage, client, held_out)
        _index(stage, client, max_tail)
        _measure(stage, client, held_out)
        _shards(stage, client)
        _go_on(stage, client, keep=keep)


def find_examples() -> Path:
    """The examples directory of the checkout that this program belongs to, or in which it is run."""
    places = (Path(__file__).resolve().parents[2], Path.cwd(), *Path.cwd().parents)
    for place in places:
        if (place / "examples" / "laptop.yaml").exists() and (place / "examples" / "wordnet").is_dir():
            return place / "examples"
    raise LocalFailure(
        "The demo needs examples/laptop.yaml and examples/wordnet, which are in a checkout of VecCluster: "
        "run it there, with `make demo`."
    )


def read_words(directory: Path, vectors: str, metadata: str) -> Words:
    """Words of examples/wordnet."""
    content = (directory / metadata).read_bytes()
    lines = (gzip.decompress(content) if metadata.endswith(".gz") else content).splitlines()
    return Words(np.load(directory / vectors).astype(np.float32), [orjson.loads(line) for line in lines])


@contextmanager
def _cluster(stage: Stage, file: Path, *, keep: bool) -> Iterator[Desired]:
    """A running cluster for the time of the block; on the way out everything goes, unless it is to be kept."""
    cluster = read_cluster(file)
    directory = _directory(cluster.metadata.name, keep=keep)
    finished = False
    with _signals_as_exit():
        try:
            stage.heading("A cluster")
            first = ports.first_free_run(changes.DEFAULT_PORT, cluster.spec.nodes)
            if first != changes.DEFAULT_PORT:
                taken = f"Port {changes.DEFAULT_PORT} or one after it is in use"
                stage.say(f"{taken}, so the nodes listen on {first} and the ports after it.")
            started = time.monotonic()
            desired = runtime.up(directory, cluster, port=first, temporary=not keep)
            runtime.require_healthy(show_start(directory, desired, START_SECONDS))
            stage.say(f"{etcd_line(desired)}, and nodes at {', '.join(desired.servers)}.")
            stage.say(f"Started from examples/{file.name}; healthy after {time.monotonic() - started:.1f} s.")
            yield desired
            finished = True
        finally:
            if not (keep and finished):
                if finished:
                    stage.console.print("\nStopping the cluster.")
                runtime.delete(directory)
                if not keep:
                    shutil.rmtree(directory.path, ignore_errors=True)  # made by us, for this demo alone


def _directory(name: str, *, keep: bool) -> StateDirectory:
    if not keep:
        return StateDirectory(Path(tempfile.mkdtemp(prefix="veccluster-demo-")).resolve())
    directory = default_directory(name)
    if directory.path.exists():
        raise LocalFailure(
            f"There is a cluster in {directory.path} already. `veccluster down {name} --delete-data` makes room for a "
            "fresh one."
        )
    return directory


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that everything is stopped."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _load(stage: Stage, client: Client, words: Words) -> None:
    stage.heading(f"{len(words.metadata):,} words of WordNet, each with what it means")
    client.create_collection(COLLECTION, words.vectors.shape[1], metric="cosine", filterable=["pos", "lexname"])
    ids = [meta["id"] for meta in words.metadata]
    fields = [{key: value for key, value in meta.items() if key != "id"} for meta in words.metadata]
    started = time.monotonic()
    with progress_bar("   Loading", len(ids), console=stage.console) as bar:
        client.upload(COLLECTION, [(ids, words.vectors, fields)], progress=lambda p: _advance(bar, p), total=len(ids))
    took = time.monotonic() - started
    count = client.count(COLLECTION)
    stage.say(
        f"Loaded {count:,} vectors of {words.vectors.shape[1]} numbers with their metadata in {took:.1f} s "
        f"({count / took:,.0f} a second), every one of them on disk before it was acknowledged."
    )


def _advance(bar: Any, progress: Progress) -> None:
    bar.update(progress.done)


def _neighbours(stage: Stage, client: Client, held_out: Words) -> None:
    stage.heading("What is near words that the collection has never seen")
    for word in SHOWN_WORDS:
        row = held_out.index_of(word)
        hits = client.search(COLLECTION, held_out.vectors[row], k=NEIGHBOURS, include=["metadata"])
        _show_hits(stage, word, held_out.metadata[row]["gloss"], hits.hits)


def _filtered(stage: Stage, client: Client, held_out: Words) -> None:
    stage.heading("The same with a filter on the metadata")
    for word, condition, words in FILTERED:
        row = held_out.index_of(word)
        hits = client.search(COLLECTION, held_out.vectors[row], k=NEIGHBOURS, filter=condition, include=["metadata"])
        _show_hits(stage, word, f"{words}: filter {orjson.dumps(condition).decode()}", hits.hits)


def _show_hits(stage: Stage, word: str, about: str, hits: Sequence[Hit]) -> None:
    stage.line(f"   {word}: {about}", "bold")
    for hit in hits:
        assert hit.metadata is not None
        stage.line(f"     {hit.score:.2f}  {hit.metadata['words'][0]:<22}  {hit.metadata['gloss']}")


def _change(stage: Stage, client: Client, held_out: Words) -> None:
    stage.heading("A vector is added, replaced, deleted")
    eagle, milk = (held_out.vectors[held_out.index_of(word)] for word in ("eagle", "skim milk"))
    client.upsert(COLLECTION, ["my-word"], eagle[np.newaxis], [{"note": "an eagle"}])
    stage.say(f"my-word is stored with the meaning of eagle. Nearest to eagle: {_nearest(client, eagle)}.")
    client.upsert(COLLECTION, ["my-word"], milk[np.newaxis], [{"note": "milk"}])
    near_eagle, near_milk = _nearest(client, eagle), _nearest(client, milk)
    stage.say(f"my-word now means skim milk. Nearest to eagle: {near_eagle}; to skim milk: {near_milk}.")
    client.delete(COLLECTION, ["my-word"])
    stage.say(f"my-word is deleted. Nearest to skim milk: {_nearest(client, milk)}.")


def _nearest(client: Client, vector: NDArray[np.float32]) -> str:
    hit = client.search(COLLECTION, vector, k=1, include=["metadata"])[0]
    assert hit.metadata is not None
    return f"{hit.metadata.get('words', [hit.id])[0]} ({hit.score:.2f})"


def _index(stage: Stage, client: Client, max_tail: int) -> None:
    """Wait until graphs answer, so that what is measured is the index, and not the scan that does for it meanwhile."""
    stage.heading("An index: what was loaded is put into a graph (HNSW) of each shard, in the background")
    stage.say("Until then new vectors are found by looking at all of them. Waiting for the graphs ...")
    deadline = time.monotonic() + BUILD_SECONDS
    with progress_bar("   Building the index", console=stage.console) as bar:
        while not _is_indexed(info := client.collection(COLLECTION), max_tail) and time.monotonic() < deadline:
            bar.update(_in_graphs(info), info.count)
            time.sleep(0.2)
    stage.say(f"{_in_graphs(info):,} of {info.count or 0:,} vectors are in a graph.")


def _is_indexed(info: CollectionInfo, max_tail: int) -> bool:
    """Whether nothing is being built, or about to be."""
    tails = [(s.vectors or 0) - (s.indexed or 0) for s in info.shard_states]
    return info.index_state == "ready" and max(tails, default=0) <= max_tail


def _in_graphs(info: CollectionInfo) -> int:
    return sum(s.indexed or 0 for s in info.shard_states)


def _measure(stage: Stage, client: Client, held_out: Words) -> None:
    queries = held_out.vectors
    stage.heading(f"How good, how fast: {len(queries)} held-out words, one after the other, k = {K}")
    truth = client.search_many(COLLECTION, queries, k=K, exact=True).ids
    found, seconds = [], []
    with progress_bar("   Asking", ROUNDS * len(queries), console=stage.console) as bar:
        for query in np.tile(queries, (ROUNDS, 1)):
            started = time.perf_counter()
            found.append(client.search(COLLECTION, query, k=K).ids)
            seconds.append(time.perf_counter() - started)
            bar.update(len(found))
    recall = np.mean([len({*ids} & {*right}) / len(right) for ids, right in zip(found, truth * ROUNDS, strict=True)])
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    stage.say(f"Recall@{K} against the exact answer (exact: true): {recall:.3f}")
    stage.say(f"Latency seen by this client: p50 {p50:.1f} ms, p95 {p95:.1f} ms")


def _shards(stage: Stage, client: Client) -> None:
    info = client.cluster()
    stage.heading("Where the data lives")
    for shard in client.collection(COLLECTION).shard_states:
        vectors, indexed = shard.vectors or 0, shard.indexed or 0
        scanned = f", {vectors - indexed:,} scanned exactly" if vectors > indexed else ""
        stage.line(f"   shard {shard.number} on {shard.primary}: {vectors:,} vectors, {indexed:,} in a graph{scanned}")
    issues = f" ({'; '.join(info.issues)})" if info.issues else ""
    stage.say(f"The cluster is {info.health}{issues}; its leader is {info.leader}.")


def _go_on(stage: Stage, client: Client, *, keep: bool) -> None:
    stage.heading("How to go on")
    run = program()
    if keep:
        like = client.page(COLLECTION, limit=1).vectors[0].id
        commands = (f"{run} status", f"{run} search {COLLECTION} --like {like}", f"{run} down")
    else:
        commands = (f"{run} demo --keep", f"{run} up -f examples/laptop.yaml", f"{run} --help")
    for command in commands:
        stage.line(f"   {command}", "green")
    stage.say("")

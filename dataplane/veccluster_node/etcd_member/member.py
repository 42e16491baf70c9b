"""`veccluster-etcd-member`: writes the configuration with which etcd may safely start in this pod, then ends.

It runs before etcd does, and takes as long as it must: `decisions/etcd_member.py` says what may be done, and this
module looks, does it and looks again. Exit codes: 0 the file is written; 1 a failure; 2 bad configuration.
"""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import msgspec
import structlog

from veccluster import failpoints
from veccluster.decisions import etcd_member as decision
from veccluster.decisions.etcd_member import Add, Mine, Remove, Seen, SetAside, Start, Wait
from veccluster.errors import InvalidSpec, MetadataRefused, MetadataUnavailable, OutcomeUnknown
from veccluster.model.etcd import EtcdId, EtcdMember, MemberId, Membership
from veccluster_etcd import EtcdClient
from veccluster_node.etcd_member import bootstrap as files
from veccluster_node.etcd_member import wal
from veccluster_node.etcd_member.bootstrap import Bootstrap, Member
from veccluster_node.runtime import logs

EXIT_FAILED, EXIT_CONFIG = 1, 2
PAUSE = 1.0
"""Seconds between two looks."""
PATIENCE = 3.0
"""Seconds that peers are given for an answer."""
FOR_A_CHANGE = 15.0
"""Seconds for a change of the members: etcd wants those that are left to have been connected for five."""

log = structlog.get_logger(__name__)


def main() -> None:
    """Entry point of `veccluster-etcd-member`."""
    arguments = argparse.ArgumentParser(
        prog="veccluster-etcd-member", description="Writes the configuration with which an etcd member may start."
    )
    arguments.add_argument("--name", required=True, help="this member's name, one of those in the bootstrap file")
    arguments.add_argument("--config", type=Path, required=True, help="the bootstrap file, JSON")
    arguments.add_argument("--data-dir", type=Path, required=True, help="etcd's data directory, on its volume")
    arguments.add_argument("--out", type=Path, required=True, help="etcd's configuration file, to be written")
    arguments.add_argument("--log-level", default="info", choices=logs.LEVELS)
    options = arguments.parse_args()
    logs.to_stderr(options.log_level)
    try:
        asyncio.run(Preparation(options.name, options.config, options.data_dir, options.out).run())
    except InvalidSpec as error:
        _give_up(EXIT_CONFIG, error.detail)
    except OSError as error:
        _give_up(EXIT_FAILED, str(error))


@dataclass
class Preparation:
    """One run: from what is on the disk and what the peers say to etcd's configuration file."""

    name: str
    config: Path
    data_dir: Path
    out: Path
    waits_for: str = ""

    async def run(self) -> None:
        """Act until etcd may start. The file is read anew each time: the operator may have learned more."""
        while True:
            if await self.step():
                return
            await asyncio.sleep(PAUSE)

    async def step(self) -> bool:
        """Look and do one thing; whether etcd may start now."""
        bootstrap = files.load(self.config)
        mine = self._mine(bootstrap)
        try:
            action = decision.decide(mine, bootstrap.plan(), await look(bootstrap, self.name))
            if isinstance(action, Add):
                mine, seen = await self._added(bootstrap, mine)
                action = decision.decide(mine, bootstrap.plan(), seen)
            return await self._do(action, bootstrap)
        except (MetadataUnavailable, MetadataRefused, OutcomeUnknown) as error:
            self._tell(error.detail)
            return False

    async def _do(self, action: decision.Action, bootstrap: Bootstrap) -> bool:
        match action:
            case Start():
                self._write(action, bootstrap)
                return True
            case SetAside(why):
                self._set_aside(why)
            case Remove(member):
                async with self._etcd(bootstrap) as client:
                    await client.administration.remove_member(member.id)
                log.warning("lost_member_removed", member=str(member), peer_url=bootstrap.member(self.name).peer_url)
                failpoints.hit("etcd_member.removed")
            case Wait(why):
                self._tell(why)
        return False

    async def _added(self, bootstrap: Bootstrap, mine: Mine) -> tuple[Mine, Seen]:
        """Get a new id. What etcd answers is all that can be known: it may have no majority until we start."""
        async with self._etcd(bootstrap) as client:
            given, membership = await client.administration.add_member(mine.peer_url)
        log.info("member_added", member=f"{given:x}", peer_url=mine.peer_url)
        failpoints.hit("etcd_member.added")
        return replace(mine, joined_as=given), Seen(majority=membership)

    def _mine(self, bootstrap: Bootstrap) -> Mine:
        has_data = bool(wal.log_files(self.data_dir))
        identity = wal.identity_of(self.data_dir) if has_data else None
        return Mine(self.name, bootstrap.member(self.name).peer_url, has_data, identity)

    def _write(self, start: Start, bootstrap: Bootstrap) -> None:
        if not wal.log_files(self.data_dir) and (self.data_dir / "member").exists():
            self._set_aside("etcd had begun here, and got no further than a directory without a log")
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = files.etcd_config(bootstrap, bootstrap.member(self.name), self.data_dir, start)
        files.write(config, self.out)
        log.info("etcd_may_start", state=start.state, members=config["initial-cluster"], file=str(self.out))
        failpoints.hit("etcd_member.written")

    def _set_aside(self, why: str) -> None:
        """Move the data directory to where a person finds it; what was there before makes room for it."""
        aside = self.data_dir.with_name(self.data_dir.name + ".set-aside")
        shutil.rmtree(aside, ignore_errors=True)
        self.data_dir.rename(aside)
        log.warning("data_set_aside", reason=why, directory=str(aside))
        failpoints.hit("etcd_member.set_aside")

    def _etcd(self, bootstrap: Bootstrap) -> EtcdClient:
        return EtcdClient(bootstrap.client(bootstrap.peers_of(self.name), timeout=FOR_A_CHANGE))

    def _tell(self, why: str) -> None:
        """Say once what is waited for."""
        if why != self.waits_for:
            self.waits_for = why
            log.warning("etcd_may_not_start_yet", reason=why)


async def look(bootstrap: Bootstrap, name: str) -> Seen:
    """Ask the other members; for a majority only if anybody is there at all."""
    peers = bootstrap.peers_of(name)
    heard = tuple(await _hearsay(bootstrap, peers))
    return Seen(await _majority(bootstrap, peers) if heard else None, heard)


async def _majority(bootstrap: Bootstrap, peers: tuple[Member, ...]) -> Membership | None:
    try:
        async with EtcdClient(bootstrap.client(peers, timeout=PATIENCE)) as client:
            return await client.administration.members()
    except MetadataUnavailable as error:
        log.debug("no_majority", reason=error.detail)
        return None


async def _hearsay(bootstrap: Bootstrap, peers: tuple[Member, ...]) -> Iterable[Membership]:
    """What each peer that can be reached says of the members by itself, as it tells those that join."""
    connector = aiohttp.TCPConnector(ssl=bootstrap.tls.context() if bootstrap.tls else True)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        answers = await asyncio.gather(*(_told_by(session, p.peer_url) for p in peers))
    return filter(None, answers)


class _Told(msgspec.Struct, frozen=True):
    id: int
    peer_urls: tuple[str, ...] = msgspec.field(name="peerURLs", default=())
    name: str = ""
    client_urls: tuple[str, ...] = msgspec.field(name="clientURLs", default=())


async def _told_by(session: aiohttp.ClientSession, peer_url: str) -> Membership | None:
    try:
        async with session.get(f"{peer_url}/members") as reply:
            cluster = EtcdId(int(reply.headers["X-Etcd-Cluster-ID"], 16))
            members: Any = msgspec.json.decode(await reply.read(), type=tuple[_Told, ...])
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        log.debug("peer_not_reached", peer_url=peer_url, reason=str(error))
        return None
    listed = (EtcdMember(MemberId(m.id), m.name, m.peer_urls, m.client_urls) for m in members)
    return Membership(cluster, tuple(listed))


def _give_up(code: int, why: str) -> NoReturn:
    print(f"veccluster-etcd-member: {why}", file=sys.stderr)  # noqa: T201 - the line for the person who started it
    sys.exit(code)


if __name__ == "__main__":
    main()

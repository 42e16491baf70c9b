"""The faults are what they are called: what was synced survives a power cut and nothing else has to; cuts cut."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def inside(code: str, tmp_path: Path) -> str:
    """What a program prints that runs in namespaces of its own, with `base` to use."""
    program = "from pathlib import Path\nfrom chaos import arena\nfrom chaos.disks import Disk\n"
    program += f"base = Path({str(tmp_path)!r})\n{textwrap.dedent(code)}"
    command = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--mount", sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_power_cut_takes_what_was_not_synced_and_leaves_what_was(tmp_path: Path) -> None:
    said = inside(
        """
        import os
        disk = Disk(base, "d")
        for name in ("synced", "not"):
            with (disk.path / name).open("wb") as file:
                file.write(b"x" * 10_000)
                if name == "synced":
                    file.flush(); os.fsync(file.fileno())
        directory = os.open(disk.path, os.O_RDONLY); os.fsync(directory); os.close(directory)
        with (disk.path / "synced").open("ab") as file:
            file.write(b"y" * 10_000)
        disk.shut_down(); disk.unmount(); disk.mount()
        print([(p.name, p.stat().st_size) for p in sorted(disk.path.iterdir()) if p.is_file() and p.stat().st_size])
        """,
        tmp_path,
    )
    assert said == "[('synced', 10000)]"


def test_a_starved_disk_fails_to_sync_and_a_full_one_to_write_until_they_are_relieved(tmp_path: Path) -> None:
    said = inside(
        """
        import os
        disk = Disk(base, "d")
        def write():
            with (disk.path / "f").open("ab", buffering=0) as file:
                try:
                    for _ in range(4):
                        file.write(os.urandom(1 << 20))
                except OSError:
                    return "write"
                try:
                    os.fsync(file.fileno())
                except OSError:
                    return "sync"
            return "good"
        found = [write()]
        disk.starve(); found.append(write()); disk.relieve()
        disk.unmount(); disk.mount(); found.append(write())
        disk.fill(4096); found.append(write()); disk.relieve(); found.append(write())
        print(*found)
        """,
        tmp_path,
    )
    assert said == "good sync good write good"


def test_a_cut_loses_packets_in_one_direction_or_both_until_it_is_healed(tmp_path: Path) -> None:
    said = inside(
        """
        import socket, subprocess, sys
        arena.build()
        one, other = arena.Host("a", 11), arena.Host("b", 12)
        echo = "import socket; s=socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 7)); print('ready', flush=True)\\nwhile 1: d, a = s.recvfrom(9); print('got', flush=True); s.sendto(d, a)"
        server = subprocess.Popen(other.inside([sys.executable, "-c", echo]), stdout=subprocess.PIPE, text=True)
        server.stdout.readline()
        ask = f"import socket; s=socket.socket(type=socket.SOCK_DGRAM); s.settimeout(0.3); s.sendto(b'x', ('{other.ip}', 7)); s.recv(9)"
        def reached():
            try:
                return subprocess.run(one.inside([sys.executable, "-c", ask]), capture_output=True).returncode == 0
            except OSError:
                return False
        found = [reached()]
        for direction in arena.Direction:
            one.cut([other.ip], direction); found.append(reached()); one.heal()
        found.append(reached())
        server.kill(); print(found, server.stdout.read().count("got"))
        """,  # noqa: E501 - programs for a shell
        tmp_path,
    )
    assert said == "[True, False, False, False, True] 3"  # one cut of three lets the question through

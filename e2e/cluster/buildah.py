"""buildah, and the folders in which images are kept: OCI layouts, where every layer is a file named by its digest.

Layers are not compressed, which takes longer than the rest of a build, and what two images share is on disk once.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from e2e.cluster.process import run

_MANY_IMAGES = 100
_INDEX = "index.json"
_BLOBS = Path("blobs/sha256")


class Buildah:
    """buildah with a store of its own, in the cache: the machine's other containers are none of our business."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        store = cache / "buildah"
        root, state = store / "root", store / "run"
        self._command = ("buildah", "--root", str(root), "--runroot", str(state))
        self._store = f"containers-storage:[overlay@{root}+{state}]"
        self._env = {**os.environ, "STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str | Path, check: bool = True, nice: bool = False) -> str:
        """Run one of its commands."""
        prefix = ("nice", "-n", "10") if nice else ()
        return run(*prefix, *self._command, *arguments, check=check, env=self._env, timeout=1800)

    def add(self, container: str, source: Path, target: str) -> None:
        """Copy a file into an image under construction."""
        self("copy", "--quiet", container, source, target)

    def has(self, tag: str) -> bool:
        """Whether an image is in the store."""
        return bool(self("images", "--quiet", tag, check=False).strip())

    def save(self, tag: str, layout: Path) -> None:
        """Write an image into an empty folder; what any image in the cache has already is linked, not written again."""
        (layout / _BLOBS).mkdir(parents=True)
        for blob in self._cache.glob(f"image-*/{_BLOBS}/*"):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another may forget an image meanwhile
                (layout / _BLOBS / blob.name).hardlink_to(blob)
        self._copy("--dest-oci-accept-uncompressed-layers", f"{self._store}{tag}", f"oci:{layout}")
        _name(layout, tag)
        needed = blobs(layout)
        for blob in (layout / _BLOBS).iterdir():
            if blob.name not in needed:
                blob.unlink()

    def restore(self, tag: str, layout: Path) -> None:
        """Read an image back into the store."""
        self._copy(f"oci:{layout}", f"{self._store}{tag}")

    def tidy(self) -> None:
        """Forget the layers of earlier builds now and then; what leads to an image with a tag is kept."""
        if len(self("images", "--all", "--quiet").split()) > _MANY_IMAGES:
            self("rmi", "--prune", "--force", check=False)

    def _copy(self, *arguments: str) -> None:
        run("skopeo", "--insecure-policy", "copy", "--quiet", *arguments, env=self._env)


def blobs(layout: Path) -> set[str]:
    """The digests of all that an image consists of: its manifest, its configuration and its layers."""
    manifest = _digest(json.loads((layout / _INDEX).read_text())["manifests"][0])
    parts = json.loads((layout / _BLOBS / manifest).read_text())
    return {manifest, _digest(parts["config"]), *map(_digest, parts["layers"])}


def files(chosen: set[str]) -> list[str]:
    """The files of a layout that make an archive with these blobs."""
    return ["oci-layout", _INDEX, *(str(_BLOBS / blob) for blob in sorted(chosen))]


def _name(layout: Path, tag: str) -> None:
    """Say what containerd shall call the image."""
    index = json.loads((layout / _INDEX).read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": tag}
    (layout / _INDEX).write_text(json.dumps(index))


def _digest(descriptor: dict[str, str]) -> str:
    return descriptor["digest"].removeprefix("sha256:")

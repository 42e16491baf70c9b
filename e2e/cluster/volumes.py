"""Persistent volumes of a real size, so that a disk can be full and can grow: the cluster's dynamic provisioner.

A volume is a sparse file with an XFS on a loop device (ext4 grows online only with CAP_SYS_RESOURCE), mounted on this
host and given to pods as a `local` volume: of the types built into Kubernetes the one which applies fsGroup as a CSI
driver would. All nodes share the host's filesystem, so which nodes reach a volume is ours to say. By default those of
one zone, as with the disks that clouds sell; the class `regional` follows its pod anywhere.

Level-triggered: each round lists claims and volumes, asks `decide`, and does what it says. Run by `python -m
e2e.cluster.volumes`; the cluster runs one of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from e2e.cluster.control_plane import Api, ApiError
from e2e.cluster.process import HarnessError, run
from e2e.cluster.settings import Settings

PROVISIONER = "veccluster.test/loop"
CLASSES = ("standard", "regional")
SMALLEST = 320 << 20  # mkfs.xfs makes none below 300 MiB
_CLAIMS = "/api/v1/persistentvolumeclaims"
_VOLUMES = "/api/v1/persistentvolumes"
_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Provision:
    """Make the volume of a claim whose pod was given a node in `zone`."""

    claim: Object
    volume: str
    size: int
    zone: str


@dataclass(frozen=True, slots=True)
class Grow:
    """Make a volume as large as its claim asks by now."""

    claim: Object
    volume: str
    size: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell a claim that its volume is larger than it knows: its `Grow` was interrupted half-way."""

    claim: Object
    size: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a volume whose claim is gone."""

    volume: str


Action = Provision | Grow | Report | Delete


def decide(claims: Iterable[Object], volumes: Iterable[Object], zones: Mapping[str, str]) -> Iterator[Action]:
    """Yield what is to be done; nothing once it is done."""
    ours = {v["metadata"]["name"]: v for v in volumes if _is_ours(v)}
    for claim in claims:
        annotations = claim["metadata"].get("annotations", {})
        size = max(bytes_of(claim["spec"]["resources"]["requests"]["storage"]), SMALLEST)
        name = f"pvc-{claim['metadata']['uid']}"
        node = annotations.get("volume.kubernetes.io/selected-node")
        if claim["spec"].get("storageClassName") not in CLASSES or claim["metadata"].get("deletionTimestamp"):
            continue
        if volume := ours.get(claim["spec"].get("volumeName", "")):
            held = volume["spec"]["capacity"]["storage"]
            if size > (has := bytes_of(held)):
                yield Grow(claim, volume["metadata"]["name"], size)
            elif has > bytes_of(claim.get("status", {}).get("capacity", {}).get("storage", held)):
                yield Report(claim, has)
        elif not claim["spec"].get("volumeName") and node in zones and name not in ours:
            yield Provision(claim, name, size, zones[node])
    for name, volume in ours.items():
        if (
            volume.get("status", {}).get("phase") == "Released"
            and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        ):
            yield Delete(name)


def _is_ours(volume: Object) -> bool:
    return bool(volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER)


def bytes_of(quantity: str) -> int:
    """The number that a quantity of Kubernetes such as 1500Mi stands for."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([kMGT]i?|Ki|)", quantity)
    if not match:
        raise HarnessError(f"not a size of storage: {quantity}")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def quantity(size: int) -> str:
    """A number of bytes as people write it."""
    unit = next((u for u in ("Gi", "Mi", "Ki") if size % _UNITS[u] == 0), "")
    return f"{size // _UNITS[unit]}{unit}"


def storage_classes() -> list[dict[str, Any]]:
    """The default class, whose volumes stay in their zone, and one whose volumes do not."""
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": name,
                "annotations": {
                    "storageclass.kubernetes.io/is-default-class": "true" if name == "standard" else "false"
                },
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "allowVolumeExpansion": True,
            "volumeBindingMode": "WaitForFirstConsumer",
        }
        for name in CLASSES
    ]


class Disks:
    """The volumes as the host has them: image files, loop devices and mounts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, volume: str) -> Path:
        """Where it is mounted; pods get `data` in it and never see what the fault tools put beside that."""
        return self._folder / volume

    def create(self, volume: str, size: int) -> Path:
        """Make an empty filesystem of `size` bytes and return the directory that pods get."""
        image, mount = self._image(volume), self.path(volume)
        if not mount.is_mount():
            self.remove(volume)  # what an interrupted attempt left
            mount.mkdir(parents=True)
            with image.open("wb") as file:
                file.truncate(size)
            device = run("losetup", "--find", "--show", image).strip()
            run("mkfs.xfs", "-q", "-f", "-K", device)
            run("mount", "-t", "xfs", device, mount)
        (mount / "data").mkdir(exist_ok=True)
        return mount / "data"

    def grow(self, volume: str, size: int) -> None:
        """Enlarge a filesystem in use."""
        with self._image(volume).open("r+b") as file:
            file.truncate(size)
        for device in self._devices(volume):
            run("losetup", "--set-capacity", device)
        run("xfs_growfs", self.path(volume))

    def remove(self, volume: str) -> None:
        """Unmount, detach and delete; what is gone already is no error."""
        if self.path(volume).is_mount():
            run("umount", self.path(volume))
        for device in self._devices(volume):
            run("losetup", "--detach", device)
        self._image(volume).unlink(missing_ok=True)
        shutil.rmtree(self.path(volume), ignore_errors=True)

    def _image(self, volume: str) -> Path:
        return self._folder / f"{volume}.img"

    def _devices(self, volume: str) -> list[str]:
        return devices_below(self._image(volume))


def devices_below(path: Path) -> list[str]:
    """The loop devices whose file is `path` or below it."""
    found = json.loads(run("losetup", "--json", "--list", "--output", "NAME,BACK-FILE") or '{"loopdevices": []}')[
        "loopdevices"
    ]
    files = {device["name"]: (device["back-file"] or "").removesuffix(" (deleted)") for device in found}
    return [name for name, file in files.items() if file == str(path) or file.startswith(f"{path}/")]


def perform(action: Action, api: Api, disks: Disks) -> None:
    """Do one action; done twice it does no harm."""
    match action:
        case Provision(claim, volume, size, zone):
            manifest = _volume(claim, volume, size, zone, disks.create(volume, size))
            with _unless(409):
                api("POST", _VOLUMES, manifest)
        case Grow(claim, volume, size):
            disks.grow(volume, size)
            api("PATCH", f"{_VOLUMES}/{volume}", {"spec": {"capacity": {"storage": quantity(size)}}})
            _report(claim, size, api)
        case Report(claim, size):
            _report(claim, size, api)
        case Delete(volume):
            disks.remove(volume)
            with _unless(404):
                api("DELETE", f"{_VOLUMES}/{volume}")


def _report(claim: Object, size: int, api: Api) -> None:
    metadata = claim["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/persistentvolumeclaims/{metadata['name']}/status"
    api("PATCH", path, {"status": {"capacity": {"storage": quantity(size)}, "conditions": None}})


def _volume(claim: Object, name: str, size: int, zone: str, path: Path) -> dict[str, Any]:
    """The PersistentVolume, bound to its claim from the start."""
    zonal = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}
    anywhere = {"key": "topology.kubernetes.io/zone", "operator": "Exists"}
    expression = zonal if claim["spec"]["storageClassName"] == "standard" else anywhere
    reference = {key: claim["metadata"][key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": quantity(size)},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **reference},
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": claim["spec"]["storageClassName"],
            "volumeMode": "Filesystem",
        },
    }


@contextlib.contextmanager
def _unless(status: int) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.status != status:
            raise


def serve(settings: Settings) -> None:
    """Provide volumes for as long as the process lives; a failure is said in the log and tried again."""
    api, disks = Api(settings), Disks(settings.volumes)
    zones = {node.name: node.zone for node in settings.nodes}
    while True:
        try:
            actions = list(decide(api("GET", _CLAIMS)["items"], api("GET", _VOLUMES)["items"], zones))
        except (OSError, ApiError) as error:
            print(f"cannot look: {error}", file=sys.stderr, flush=True)
            actions = []
        for action in actions:
            print(_short(action), file=sys.stderr, flush=True)
            try:
                perform(action, api, disks)
            except (OSError, ApiError, HarnessError):
                traceback.print_exc()
        time.sleep(0.5)


def _name(claim: Object) -> str:
    return f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"


def _short(action: Action) -> str:
    match action:
        case Provision(claim, volume, size, zone):
            return f"provision {volume} for {_name(claim)}: {size} bytes in {zone}"
        case Grow(_, volume, size):
            return f"grow {volume} to {size} bytes"
        case Report(claim, size):
            return f"report {size} bytes to {_name(claim)}"
        case Delete(volume):
            return f"delete {volume}"


if __name__ == "__main__":
    serve(Settings.from_environment())

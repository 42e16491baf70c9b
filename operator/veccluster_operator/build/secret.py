"""The Secrets that data pods mount, and what their files are called by whoever wrote the VecCluster.

The kubelet mounts them: the operator never reads a Secret, so it is the node that finds one missing or wrong. It knows
files; a person knows fields, Secrets and keys.
"""

import re

from veccluster.model.spec import VecCluster
from veccluster_operator.build.config import ETCD_CREDENTIALS_DIRECTORY, ETCD_TLS_DIRECTORY


def secrets(cluster: VecCluster) -> dict[str, tuple[str, str]]:
    """Secret and directory by name of the volume.

    They are mounted as optional: a node that starts without says which key of which Secret it waits for and goes on
    when it is there, where a pod that waits for its volume says nothing that the operator may read.
    """
    metadata, found = cluster.spec.metadata, {}
    if metadata.tls is not None:
        found["etcd-tls"] = (metadata.tls.secret_name, ETCD_TLS_DIRECTORY)
    if metadata.credentials_secret is not None:
        found["etcd-credentials"] = (metadata.credentials_secret, ETCD_CREDENTIALS_DIRECTORY)
    return found


_FIELDS = {"etcd-tls": "spec.metadata.tls.secretName", "etcd-credentials": "spec.metadata.credentialsSecret"}


def in_words_of_the_spec(text: str, cluster: VecCluster) -> str:
    """What a node says, with Secrets and their keys instead of its files, and the field that names them at the end."""
    fields = []
    for volume, (secret, directory) in secrets(cluster).items():
        known = re.sub(rf"{re.escape(directory)}/([\w.-]*\w)", rf"key \1 of Secret {secret}", text)
        known = known.replace(directory, f"Secret {secret}")
        if known != text:
            fields.append(_FIELDS[volume])
            text = known
    return f"{text.rstrip('.')} ({', '.join(fields)})" if fields else text

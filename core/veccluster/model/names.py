"""Texts that must be written in a certain way, and collections of texts: types that the resources are made of."""

from collections import Counter
from typing import Annotated, TypeVar

from veccluster.model.limits import MAX_FIELD_BYTES, NAME_PATTERN
from veccluster.model.units import Text, wrong

MAX_CLUSTER_NAME = 40
"""Kubernetes allows 52 for a StatefulSet; the rest is for the suffixes of what is created for a cluster."""

T = TypeVar("T")


def unique(items: tuple[T, ...]) -> tuple[T, ...]:
    """The same items; a pydantic error names one that is there twice."""
    if repeated := [item for item, count in Counter(items).items() if count > 1]:
        raise wrong(f"must not repeat items, has {repeated[0]} more than once")
    return items


AS_SET = {"x-kubernetes-list-type": "set"}
ClusterName = Annotated[
    str,
    Text(r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "lower-case letters, digits and -, starting with a letter", MAX_CLUSTER_NAME),
]
ObjectName = Annotated[
    str,
    Text(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "the name of a Kubernetes object: lower-case letters, digits, - and ."),
]
LabelName = Annotated[
    str,
    Text(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "lower-case letters, digits and -, beginning and ending without -", 63),
]
CollectionName = Annotated[
    str, Text(NAME_PATTERN, "1 to 63 lower-case letters, digits, - and _, starting with a letter or digit", 63)
]
ZoneName = Annotated[str, Text(r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", "a label value such as eu-west-1a", 63)]
FieldPath = Annotated[
    str, Text(r"^[^.$][^.]*([.][^.]+)*$", 'a field of the metadata such as "pos" or "author.name"', MAX_FIELD_BYTES)
]
Url = Annotated[str, Text(r"^https?://[-A-Za-z0-9.]+(:[0-9]{1,5})?$", "a URL such as http://etcd-0.example:2379", 256)]
Origin = Annotated[
    str,
    Text(
        r"^[a-z][-+.a-z0-9]*://([-a-z0-9.]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?$",
        "the origin of web pages such as https://app.example or http://localhost:3000: scheme://host or "
        "scheme://host:port in lower case; not *, which would let in every page that anybody opens",
        256,
    ),
]
HostName = Annotated[
    str, Text(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "a host name such as db.example, without a port", 253)
]
SecureUrl = Annotated[str, Text(r"^https://[^ ]+$", "a URL that starts with https://", 512)]
ImageName = Annotated[
    str, Text(r"^[A-Za-z0-9][-A-Za-z0-9._/:@]*$", "an image such as registry.example/veccluster:0.1", 512)
]

Labels = dict[str, str]

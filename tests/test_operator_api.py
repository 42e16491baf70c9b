"""How the operator reads what the API server answers."""

import pytest

from veccluster_operator.adapters.kube import ApiError

TYPED = (
    "failed to create typed patch object (search/demo; apps/v1, Kind=StatefulSet): .spec.template.spec.priority: ..."
)


@pytest.mark.parametrize(
    ("status", "message", "final"),
    [
        (422, "spec.replicas: Invalid value", True),
        (403, "exceeded quota", True),
        (500, TYPED, True),  # as Kubernetes 1.34 answers a server-side apply with a field of a wrong type
        (500, "etcdserver: request timed out", False),
        (409, "the object has been modified", False),
        (0, "the API server gave no answer", False),
    ],
)
def test_what_asking_again_does_not_mend_is_told_apart_from_what_may_pass(status, message, final):
    assert ApiError(status, "", message).is_invalid == final

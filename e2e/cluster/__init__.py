"""A real Kubernetes cluster for the end-to-end tests, made on the machine that runs them.

`python -m e2e.cluster up` gives three nodes in three zones. With a Docker daemon and kind at hand kind makes them
(`kind`); anywhere else, as long as it is Linux and we are root, they are built from Kubernetes' own Go modules,
containerd and network namespaces (`built`). Why so is in docs/decisions/0009-test-cluster.md.
"""

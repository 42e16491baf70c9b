"""Everything outside the operator's process: the Kubernetes API, the Lease, the data plane, etcd. No decisions."""

"""End-to-end tests: VecCluster on a real Kubernetes, and the harness that makes one."""

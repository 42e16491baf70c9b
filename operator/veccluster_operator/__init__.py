"""The Kubernetes operator: it makes what a VecCluster and its VecCollections ask for true, and says how far it is."""

"""What the tests of VecCluster share: the operator as installed, VecClusters to ask about, a client inside."""

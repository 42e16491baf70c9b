"""The data node: hosts shards, coordinates any request, and leads the cluster when it is elected."""

import os
from importlib.metadata import version

# Searches run in as many threads as there are processors already; BLAS with threads of its own would only make them
# wait for each other. numpy reads this when it is imported, so it must be said before.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

VERSION = version("veccluster")

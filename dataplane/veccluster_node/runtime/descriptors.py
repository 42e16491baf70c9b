"""How many files this process may open: as many as the system lets it, which is more than what it starts with."""

import resource

import structlog

from veccluster.decisions.descriptors import ENOUGH

log = structlog.get_logger(__name__)


def raise_limit() -> int:
    """Raise the soft limit as far as the hard one, and say what it is from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    while soft != resource.RLIM_INFINITY and wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # macOS has a limit of its own, which it does not tell
            wanted //= 2
        else:
            break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = ENOUGH if soft == resource.RLIM_INFINITY else soft
    log.info("file_limit", files=limit)
    return limit

"""How long to wait before something that keeps failing is tried again: in one place, since it may fail for years."""


def pause(first: float, failures: int, longest: float) -> float:
    """Seconds to wait after so many failures in a row (from 1): `first`, then twice as long each time, to `longest`."""
    return min(first * 2.0 ** min(failures - 1, 64), longest)

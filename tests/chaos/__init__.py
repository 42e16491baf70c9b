"""A cluster of real processes under real faults, and judges of what its clients saw; `make chaos`."""

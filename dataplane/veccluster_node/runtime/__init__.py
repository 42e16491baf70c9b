"""What every part of a node needs of its process: configuration, data directory, metrics, memory, logs, files."""

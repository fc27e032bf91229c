"""A node as the keeper sees it: heads, reads pinned to a block hash, logs, simulation and broadcast."""

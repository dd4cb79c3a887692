"""The recomputation of TPC-H's order totals, by batchrun and by a pool written by hand. ``python -m benchmarks.tpch``."""

"""The same faults on batchrun and its peers, judged by the database. ``python -m benchmarks.faults``."""

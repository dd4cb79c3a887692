"""How fast batchrun and its peers are, on the same tasks in the same run, as ratios. ``python -m benchmarks``."""

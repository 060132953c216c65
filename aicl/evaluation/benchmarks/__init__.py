"""One file a data set; each ends in `register_benchmark(...)` (see `aicl.evaluation.benchmark`), found by itself."""

"""One file a metric; each ends in `register(Metric(...))` (see `aicl.evaluation.metric`) and is found by itself."""

"""What looks at videos: networks with their own preprocessing, and optical flow (see `aicl.evaluation.metric`)."""

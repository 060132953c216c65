"""What looks at videos: networks with their own preprocessing, and optical flow (see `aicl.evaluation.metric`).

Networks are loaded from local files, never fetched, and known by the SHA-256 of their weights. A `name` says all that
matters beside the weights, such as an activation. Name, hash and version enter the keys under which observations are
kept, and stand in every result.
"""

"""The puppet world: articulated figures doing named actions, drawn by program, with captions and measuring networks.

skeleton, motion, actions, programs     how a figure moves
scene_parameters, renderer, captions    what a clip shows, and what is said of it
data, export                            endless training batches, or mp4 files
classifier, clip, evaluators            the networks that measure generated clips, and their training
samples, benchmark, measuring, metrics  the world as a benchmark of `aicl.evaluation`
register                                makes all of it known; nothing outside imports this package
"""

"""The puppet world: articulated figures doing named actions, drawn by program, with captions and measuring evaluators.

skeleton, motion, actions, programs   how a figure moves
performance, renderer, captions, names            what a clip shows, and what is said of it
data, export                                      endless training batches, or mp4 files
classifier, clip, evaluators                     what measures generated clips, and its training
"""

from aicl.puppets.actions import ACTIONS, UNSEEN

__all__ = ["ACTIONS", "UNSEEN"]

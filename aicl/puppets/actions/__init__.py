"""All actions of the puppet world, and the ten that no generative model is ever trained on."""

import numpy as np
import torch
from torch import Tensor

from aicl.puppets.actions.table import ALL
from aicl.puppets.motion import Action
from aicl.puppets.skeleton import JOINT, PHASES, pose
from aicl.puppets.unseen import UNSEEN as UNSEEN

ACTIONS: tuple[Action, ...] = ALL
NAMES = tuple(action.name for action in ACTIONS)
INDEX = {name: index for index, name in enumerate(NAMES)}

UNSEEN_INDICES = tuple(INDEX[name] for name in UNSEEN)
SEEN_INDICES = tuple(index for index in range(len(ACTIONS)) if index not in UNSEEN_INDICES)


def action_programs() -> tuple[Tensor, Tensor]:
    """The programs of all actions, float32 (actions, channels, PHASES), and their cycles in a clip (actions,)."""
    programs = torch.from_numpy(np.stack([action.program for action in ACTIONS]))
    return programs, torch.tensor([action.cycles for action in ACTIONS], dtype=torch.float32)


def pose_distances(programs: Tensor, others: Tensor) -> Tensor:
    """How differently two sets of programs move: (n, m), root-mean-square distance of joints in metres.

    The smallest over all phase shifts and mirroring, so that two scenes of one program are at distance 0 and
    neither speed nor handedness tells programs apart. Joints are compared in the world's axes, feet on the ground.
    """
    steps = PHASES - 1
    phase = torch.arange(steps) / steps

    def trajectories(motion: Tensor) -> Tensor:
        joints = pose(motion, phase.expand(len(motion), -1))  # (n, t, joints, 3)
        return joints.double()

    swapped = [JOINT[name.translate(str.maketrans("LR", "RL")) if name[1] == "_" else name] for name in JOINT]
    reference, candidates = trajectories(programs), trajectories(others)
    mirrored = candidates[:, :, swapped] * candidates.new_tensor([-1.0, 1.0, 1.0])
    best = torch.full((len(programs), len(others)), float("inf"), dtype=torch.float64)
    scale = (steps * reference.shape[2]) ** -0.5
    for version in (candidates, mirrored):
        for shift in range(steps):
            distance = torch.cdist(reference.flatten(1), version.roll(shift, 1).flatten(1)) * scale
            best = torch.minimum(best, distance)
    return best

"""An endless family of random smooth motion programs: program k of a seed is always the same.

A motion imitator has to see far more motions than the named actions. Two fifths are composites (the arms of one seen
action, the rest of another); the others are drawn channel by channel from smooth periodic waves, with the couplings of
real movements: limbs in step, in alternation, one-sided or independent, crouching, lying, hopping, turning over.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aicl.puppets.actions import ACTIONS, SEEN_INDICES, action_programs
from aicl.puppets.motion import PHASE
from aicl.puppets.scene_parameters import uniforms
from aicl.puppets.skeleton import ARM, CHANNEL, CHANNELS, NEUTRAL, PHASES

Array = NDArray[np.float64]
_Put = Callable[[str, Array | float, Array | float, Array], None]
"""(channel, offset, swing, curve): sets one channel of all programs."""

_STREAM = 7  # keeps these draws apart from those of scenes
_WIDTH = 128
_HARMONICS = 4
_ARM_CHANNELS = [CHANNEL[f"{side}_{name}"] for side in ("left", "right") for name in ARM]


class _Draws:
    """Hands out columns of a matrix of uniforms (n, width), so that every draw is vectorised over programs."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.used = 0

    def unit(self, count: int = 1) -> Array:
        """Uniforms in [0, 1): (n,) for one, else (n, count)."""
        columns = self.matrix[:, self.used : self.used + count]
        if columns.shape[1] < count:
            raise IndexError("a random program needs more draws than _WIDTH")
        self.used += count
        return columns[:, 0] if count == 1 else columns

    def between(self, low: float, high: float) -> Array:
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> NDArray[np.bool_]:
        return self.unit() < probability

    def among(self, values: tuple[float, ...]) -> Array:
        return np.asarray(values)[(self.unit() * len(values)).astype(int)]


class _Wave:
    """Random periodic waves (one a program) between -1 and 1, from near sines to flat-topped and one-sided ones."""

    def __init__(self, draws: _Draws) -> None:
        n = len(draws.matrix)
        order = np.arange(1, _HARMONICS + 1)
        self.weights = draws.unit(_HARMONICS) * 0.9 / order**1.5
        self.weights[:, 0] = 1.0
        self.weights[:, 1:] *= draws.chance(0.6)[:, None]  # the rest are pure sines
        self.shifts = draws.unit(_HARMONICS)
        self.sharpness = np.where(draws.chance(0.3), draws.between(1.0, 3.0), 0.0)
        self.shape = (n, PHASES)

    def __call__(self, shift: Array | float = 0.0) -> Array:
        """The waves (n, PHASES), moved by `shift` (n,) cycles."""
        order = np.arange(1, _HARMONICS + 1)[:, None]
        phase = PHASE + np.broadcast_to(shift, self.shape[0])[:, None]  # (n, PHASES)
        terms = np.sin(2 * np.pi * (order * phase[:, None] + self.shifts[:, :, None]))
        wave = (self.weights[:, :, None] * terms).sum(1) / self.weights.sum(1, keepdims=True)
        squashed = np.tanh(self.sharpness[:, None] * wave) / np.tanh(np.maximum(self.sharpness, 1e-9))[:, None]
        return np.where(self.sharpness[:, None] > 0, squashed, wave)


def random_programs(seed: int, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Programs (n, channels, PHASES) and their cycles in a clip (n,); each a pure function of (seed, its number)."""
    draws = _Draws(uniforms(seed, numbers, _WIDTH, stream=_STREAM))
    composite = draws.chance(0.4)
    mixed, mixed_cycles = _composites(draws)
    free, free_cycles = _free(draws)
    programs = np.where(composite[:, None, None], mixed, free)
    return programs.astype(np.float32), np.where(composite, mixed_cycles, free_cycles).astype(np.float32)


def _composites(draws: _Draws) -> tuple[Array, Array]:
    seen = np.asarray(SEEN_INDICES)
    table, cycles = (tensor.numpy().astype(np.float64) for tensor in action_programs())
    first = (draws.unit() * len(seen)).astype(int)
    other = (first + 1 + (draws.unit() * (len(seen) - 1)).astype(int)) % len(seen)  # never the same twice
    programs = table[seen[other]]
    programs[:, _ARM_CHANNELS] = table[seen[first]][:, _ARM_CHANNELS]
    programs[:, CHANNEL["yaw"]] += np.where(draws.chance(0.3), draws.between(-60, 60), 0.0)[:, None]
    programs = np.where(draws.chance(0.25)[:, None, None], programs[:, :, ::-1], programs)
    return programs, np.where(draws.chance(0.5), cycles[seen[first]], cycles[seen[other]])


def _free(draws: _Draws) -> tuple[Array, Array]:
    n = len(draws.matrix)
    program = np.zeros((n, len(CHANNELS), PHASES))

    def put(channel: str, offset: Array | float, swing: Array | float, wave: Array) -> None:
        column = np.broadcast_to(offset, n)[:, None]
        program[:, CHANNEL[channel]] = column + np.broadcast_to(swing, n)[:, None] * wave

    arms, legs, trunk = _Wave(draws), _Wave(draws), _Wave(draws)
    _arms(draws, put, arms)
    _legs(draws, put, legs)

    bend = np.where(draws.chance(0.5), draws.between(-10, 40), draws.between(0, 80) * draws.chance(0.3))
    put("spine_bend", bend, draws.between(0, 35) * draws.chance(0.5), trunk(draws.among((0.0, 0.25, 0.5))))
    put("spine_twist", 0.0, draws.between(5, 60) * draws.chance(0.35), trunk(draws.unit()))
    put("spine_lean", 0.0, draws.between(5, 35) * draws.chance(0.3), trunk(draws.unit()))
    put("head_nod", 0.0, draws.between(3, 28) * draws.chance(0.3), trunk(draws.unit()))
    put("head_turn", 0.0, draws.between(5, 35) * draws.chance(0.2), trunk(draws.unit()))
    put("x", 0.0, draws.between(0.03, 0.3) * draws.chance(0.25), trunk(draws.unit()))
    hop = np.maximum(legs(draws.among((0.0, 0.25, 0.5))), 0.0)
    put("y", 0.0, draws.between(0.05, 0.35) * draws.chance(0.25), hop)

    put("yaw", draws.between(-80, 80) + 180 * draws.chance(0.08), 0.0, trunk())
    put("roll", 0.0, draws.between(3, 28) * draws.chance(0.3), trunk(draws.unit()))
    lying = draws.chance(0.1)
    put("pitch", np.where(lying, draws.among((-88.0, 80.0)), 0.0), draws.between(3, 12) * draws.chance(0.15), trunk())
    program[lying, CHANNEL["yaw"]] = 80.0
    turning, direction = draws.unit(), draws.among((-1.0, 1.0))[:, None]
    for channel, low, high in (("yaw", 0.0, 0.05), ("roll", 0.05, 0.1), ("pitch", 0.1, 0.13)):
        chosen = (turning >= low) & (turning < high) & ~lying
        program[chosen, CHANNEL[channel]] = (360.0 * direction * PHASE)[chosen]
        if channel == "pitch":
            program[chosen, CHANNEL["yaw"]] = 80.0  # seen from the side
    return program, draws.between(1.0, 2.0)


def _arms(draws: _Draws, put: _Put, wave: _Wave) -> None:
    """Both arms: in step, in alternation, one at rest, or each on its own."""
    relation = draws.unit()
    in_step, alternate, one_sided = relation < 0.35, (relation >= 0.35) & (relation < 0.6), relation >= 0.82
    ranges = {"arm_swing": (-20, 150, 65, 0.8), "arm_lift": (5, 135, 55, 0.7), "arm_twist": (-60, 90, 70, 0.4),
              "elbow": (5, 110, 55, 0.7)}  # fmt: skip
    circling = draws.chance(0.08)
    for name, (low, high, swing, moving) in ranges.items():
        offset, amount = draws.between(low, high), draws.between(0, swing) * draws.chance(moving)
        shift = draws.among((0.0, 0.0, 0.25, 0.5))
        own_offset, own_amount, own_shift = draws.between(low, high), draws.between(0, swing), draws.unit()
        rest = NEUTRAL.get(f"right_{name}", 0.0)
        coupled = in_step | alternate
        right = np.where(coupled, offset, np.where(one_sided, rest, own_offset))
        right_amount = np.where(coupled, amount, np.where(one_sided, 0.0, own_amount))
        right_shift = np.where(in_step, shift, np.where(alternate, shift + 0.5, own_shift))
        if name == "elbow":  # an elbow bends one way only
            offset, right = np.maximum(offset, amount), np.maximum(right, right_amount)
        left_curve, right_curve = wave(shift), wave(right_shift)
        if name == "arm_swing":  # full circles of the arms
            turn = np.where(circling[:, None], 360 * PHASE, 0.0)
            half = np.where(alternate, 180.0, 0.0)[:, None]
            put("left_arm_swing", offset * ~circling, 1.0, amount[:, None] * left_curve * ~circling[:, None] + turn)
            circle_right = circling & ~one_sided
            put("right_arm_swing", np.where(circle_right, 0.0, right), 1.0,
                np.where(circle_right[:, None], turn + half, right_amount[:, None] * right_curve))  # fmt: skip
        else:
            put(f"left_{name}", offset, amount, left_curve)
            put(f"right_{name}", right, right_amount, right_curve)


def _legs(draws: _Draws, put: _Put, wave: _Wave) -> None:
    """Both legs: standing, crouching, or moving in step, in alternation or one alone."""
    kind = draws.unit()
    moving, crouching = kind < 0.62, (kind >= 0.62) & (kind < 0.78)
    relation = draws.unit()
    other = np.where(relation < 0.35, 0.0, 0.5)  # the right leg in step or half a cycle later
    both = relation < 0.8
    shift, knee_shift = draws.unit(), draws.among((0.0, 0.1, 0.25))
    static_thigh, static_knee = draws.between(8, 78) * crouching, draws.between(10, 90) * crouching
    ranges = {"thigh": (-5, 60, 5, 52, 0.0), "knee": (0, 60, 0, 55, 1.0)}
    for name, (low, high, least, most, lag) in ranges.items():
        offset, amount = draws.between(low, high), draws.between(least, most)
        if name == "knee":
            offset = np.maximum(offset, amount)
        static = static_thigh if name == "thigh" else static_knee
        when = shift + lag * knee_shift
        put(f"left_{name}", np.where(moving, offset, static), amount * moving, wave(when))
        put(f"right_{name}", np.where(moving & both, offset, static), amount * (moving & both), wave(when + other))
    stance, opening = draws.between(3, 20), draws.between(5, 40) * draws.chance(0.4) * moving
    for side, later, active in (("left", np.zeros_like(other), moving), ("right", other, moving & both)):
        put(f"{side}_straddle", stance + opening * active, opening * active, wave(shift + later))


@lru_cache(maxsize=2)
def program_bank(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """All motions that a scene can name: the actions in order, then `count` random programs of `seed`.

    Returns programs (actions + count, channels, PHASES) and cycles (actions + count,), float32 on the CPU.
    """
    programs, cycles = action_programs()
    if not count:
        return programs, cycles
    parts = [random_programs(seed, np.arange(start, min(start + 2048, count))) for start in range(0, count, 2048)]
    random, random_cycles = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts))
    return torch.cat([programs, random]), torch.cat([cycles, random_cycles])


FIRST_RANDOM = len(ACTIONS)  # the bank's index of random program 0

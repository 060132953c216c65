"""The words that motion programs are written in: periodic functions of the phase, and the class Action."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aicl.puppets.skeleton import ARM, CHANNEL, CHANNELS, LEG, NEUTRAL, PHASES

Curve = NDArray[np.float64]

PHASE: Curve = np.linspace(0.0, 1.0, PHASES)


def sin(harmonic: int = 1, shift: float = 0.0) -> Curve:
    """A sine with `harmonic` periods a cycle, `shift` in cycles."""
    return np.sin(2 * np.pi * (harmonic * PHASE + shift))


def cos(harmonic: int = 1, shift: float = 0.0) -> Curve:
    """A cosine with `harmonic` periods a cycle, `shift` in cycles."""
    return np.cos(2 * np.pi * (harmonic * PHASE + shift))


def positive(curve: Curve) -> Curve:
    """The part of a curve above zero."""
    return np.maximum(curve, 0.0)


def square(harmonic: int = 1) -> Curve:
    """A sine with flat tops: jerky, machine-like turns between -1 and 1."""
    return np.tanh(3.0 * sin(harmonic))


def peak(center: float, width: float = 0.12) -> Curve:
    """A bump from 0 to 1 and back around phase `center`."""
    distance = np.abs((PHASE - center + 0.5) % 1.0 - 0.5)
    return np.exp(-((distance / width) ** 2))


def keys(*points: tuple[float, float]) -> Curve:
    """A periodic curve through (phase, value) points in rising order, eased by half a cosine between neighbours."""
    phases = np.array([*(phase for phase, _ in points), points[0][0] + 1.0])
    values = np.array([*(value for _, value in points), points[0][1]])
    where = PHASE + (phases[0] > PHASE)
    segment = np.clip(np.searchsorted(phases, where, side="right") - 1, 0, len(points) - 1)
    share = (where - phases[segment]) / (phases[segment + 1] - phases[segment])
    eased = 0.5 - 0.5 * np.cos(np.pi * share)
    return values[segment] + (values[segment + 1] - values[segment]) * eased


FIRST, SECOND = peak(0.25), peak(0.75)


@dataclass(frozen=True)
class Action:
    """A named action: `phrase` in the verb's base form, cycles in a clip of two seconds, program (channels, PHASES)."""

    name: str
    phrase: str
    cycles: float
    program: NDArray[np.float32]


def action(name: str, phrase: str, cycles: float, **channels: float | Curve) -> Action:
    """Write an action as channel values over the phase; `both_...` sets the left and the right channel.

    Channels that are not given rest at their neutral value. Raises KeyError for a channel that does not exist.
    """
    program = np.zeros((len(CHANNELS), PHASES), np.float32)
    for channel, rest in NEUTRAL.items():
        program[CHANNEL[channel]] = rest
    for channel, value in channels.items():
        limb = channel.removeprefix("both_")
        sides = ("left_", "right_") if channel.startswith("both_") and limb in ARM + LEG else ("",)
        for side in sides:
            program[CHANNEL[side + limb if side else channel]] = value
    program.setflags(write=False)
    return Action(name, phrase, cycles, program)

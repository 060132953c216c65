"""The table of actions, one file for each kind of movement, written in the words of `aicl.puppets.motion`."""

from aicl.puppets.actions import arms, dances, floor, legs, work
from aicl.puppets.motion import Action

ALL: tuple[Action, ...] = (*arms.ACTIONS, *work.ACTIONS, *legs.ACTIONS, *floor.ACTIONS, *dances.ACTIONS)

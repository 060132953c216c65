"""The table of actions, one file for each kind of movement. Every entry is data: see `aicl.puppets.motion` for the words."""

from aicl.puppets.motion import Action
from aicl.puppets.repertoire import arms, dances, floor, legs, work

ALL: tuple[Action, ...] = (*arms.ACTIONS, *work.ACTIONS, *legs.ACTIONS, *floor.ACTIONS, *dances.ACTIONS)

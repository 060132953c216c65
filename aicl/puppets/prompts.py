"""The template of plain captions of the puppet world, for pages that help to write prompts."""

from aicl.prompt_templates import PromptTemplate
from aicl.pseudo_words import gerund
from aicl.puppets.actions import ACTIONS, SEEN_INDICES, UNSEEN_INDICES
from aicl.puppets.scene_parameters import BACKGROUNDS, COLOURS, HEIGHTS, PACES


def prompt_template() -> PromptTemplate:
    """Every plain caption that `aicl.puppets.captions.parse` reads; actions that have to be shown come first."""
    actions = [gerund(ACTIONS[index].phrase) for index in (*UNSEEN_INDICES, *SEEN_INDICES)]
    return PromptTemplate(
        "a {height} person in a {shirt_pattern} {shirt} shirt and {trousers} trousers is {action} {pace} "
        "in front of a {background_pattern} {background} background",
        {
            "action": actions,
            "pace": [word or "" for word in PACES],
            "height": [word or "" for word in HEIGHTS],
            "shirt": list(COLOURS),
            "shirt_pattern": ["", "striped"],
            "trousers": list(COLOURS),
            "background": list(BACKGROUNDS),
            "background_pattern": ["", "striped"],
        },
        {
            "action": actions[0],
            "pace": "",
            "height": "",
            "shirt": "red",
            "shirt_pattern": "",
            "trousers": "blue",
            "background": "green",
            "background_pattern": "",
        },
    )

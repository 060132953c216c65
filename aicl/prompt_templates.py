"""Templates of well-formed prompts: sentences with gaps, for models that read few words and one kind of sentence."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lvdm.errors import ConfigError
from lvdm.registry import Registry

_GAP = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """A sentence with gaps, such as "a {size} dog {action}", and what may fill each.

    gaps: name -> choices, in the order in which they are asked for; "" among them may be left out. start: the choices
    that a form shows first.
    """

    sentence: str
    gaps: Mapping[str, Sequence[str]]
    start: Mapping[str, str]

    def __post_init__(self) -> None:
        named = set(_GAP.findall(self.sentence))
        if named != self.gaps.keys() or any(self.start[name] not in choices for name, choices in self.gaps.items()):
            raise ConfigError(f"the template '{self.sentence}' needs choices, and a first one, for each of its gaps")

    def fill(self, values: Mapping[str, str]) -> str:
        """The sentence, in which "a" becomes "an" where that is right.

        Raises ConfigError for a value that is none of the choices.
        """
        for name, choices in self.gaps.items():
            if values.get(name) not in choices:
                raise ConfigError(
                    f"'{values.get(name)}' is no choice for the {name} of this prompt: {', '.join(choices)}"
                )
        text = " ".join(_GAP.sub(lambda gap: values[gap[1]], self.sentence).split())
        return re.sub(r"\ba(?= [aeiou])", "an", text)

    def fits(self, words: Collection[str] | None) -> bool:
        """Whether a model with this vocabulary (None: it reads any words) was made for such sentences."""
        fixed = _GAP.sub(" ", self.sentence).split()
        return words is not None and all(word in words for word in fixed)


PROMPT_TEMPLATES: Registry[PromptTemplate] = Registry("template of prompts")


def template_for(words: Collection[str] | None) -> str | None:
    """The name of the first template that fits a model's vocabulary; None where there is none."""
    return next((name for name in PROMPT_TEMPLATES if PROMPT_TEMPLATES[name].fits(words)), None)

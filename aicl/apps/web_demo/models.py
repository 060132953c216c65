"""What a page can say about a model before its weights are loaded."""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from aicl.adapter import at_adapter_rate, read_adapter_info
from aicl.model_files import FOLDER_FILE, find_model_files, with_references
from aicl.prompt_templates import template_for
from aicl.reference_retrieval import Library, build_library
from lvdm.checkpoints.folder import CONFIG_FILE, read_model_config
from lvdm.data import read_folder
from lvdm.diffusion.samplers import steps_taken
from lvdm.diffusion.schedule import DiffusionConfig
from lvdm.errors import CheckpointError, UserError
from lvdm.models.components import GenerationDefaults
from lvdm.models.text import TextConfig
from lvdm.models.tokenizer import WordTokenizer

EXAMPLES = "examples"  # the folder of clips beside a model


@dataclass(frozen=True)
class ModelCard:
    """A model folder: what it takes, what it makes, and which words it knows.

    name: how a command line names it. defaults: those with references, where it has an adapter.
    """

    name: str
    family: str
    takes_image: bool
    reads_references: bool
    defaults: GenerationDefaults
    first_reference_until: float
    text: TextConfig
    diffusion: DiffusionConfig

    @property
    def fps(self) -> int:
        """The rate (1/s) at which its references are read and its videos play."""
        return self.defaults.save_fps

    @property
    def words(self) -> Collection[str] | None:
        """The words that it was taught; None for a vocabulary that spells any word."""
        return self.text.tokenizer if isinstance(self.text.tokenizer, list) else None

    @property
    def template(self) -> str | None:
        """The name of the template of prompts that it was trained on, if one is known."""
        return template_for(self.words)

    def steps_taken(self, steps: int) -> int:
        """How many steps its sampler takes where so many are asked for. Raises ConfigError for too many."""
        schedule, spacing = self.diffusion.build_schedule(), self.diffusion.spacing
        return steps_taken(self.defaults.sampler, schedule, steps, spacing)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a prompt that the model knows no meaning of, in order."""
        if self.words is None:
            return []
        return list(dict.fromkeys(_tokenizer(tuple(self.words), self.text.context_length).unknown_words(text)))


def read_card(path: Path) -> ModelCard:
    """The card of a model folder. Raises CheckpointError or ConfigError for one that cannot be read."""
    files = find_model_files(path)
    config = read_model_config(files.base)
    info = None if files.adapter is None else read_adapter_info(files.adapter)
    defaults = at_adapter_rate(config.defaults, info)
    return ModelCard(
        name=str(path),
        family=config.family,
        takes_image=config.takes_image,
        reads_references=info is not None,
        defaults=with_references(defaults, files.guidance_scale, files.num_inference_steps),
        first_reference_until=files.first_reference_until,
        text=config.text,
        diffusion=config.diffusion,
    )


def list_models(folder: Path) -> tuple[list[ModelCard], list[str]]:
    """The models in a folder, those that read references first, and a sentence about each that cannot be read.

    Raises CheckpointError where there is none.
    """
    places = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
    cards, problems = [], []
    for place in places:
        if (place / FOLDER_FILE).is_file() or (place / CONFIG_FILE).is_file():
            try:
                cards.append(read_card(place))
            except UserError as error:
                problems.append(str(error))
    if not cards and problems:
        raise CheckpointError(f"{folder} holds no model that can be read: {problems[0]}")
    if not cards:
        raise CheckpointError(f"{folder} holds no model: put one there, such as the folder that aicl convert writes")
    return sorted(cards, key=lambda card: not card.reads_references), problems


def example_clips(model: str) -> Library | None:
    """The captioned clips beside a model, None if it has none. Raises DataError for a manifest that is damaged."""
    folder = Path(model) / EXAMPLES
    return build_library(read_folder(folder)) if folder.is_dir() else None


@functools.lru_cache(maxsize=16)
def _tokenizer(words: tuple[str, ...], length: int) -> WordTokenizer:
    return WordTokenizer(words, length)

"""Task "reference_tokens": training the LoRAs that read a reference's tokens, on data and pairs of an AICL training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from aicl.baselines.reference_tokens import JointBackbone, ReferenceTokens, TokensConfig, save_tokens
from aicl.model_files import ADAPTER_FILE
from aicl.training_pairs import PairMaker, ReferenceSettings, check_given
from aicl.training_task import AICLSections, build_base_pipeline
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.pipeline import VideoPipeline
from lvdm.training.base import DiffusionModule
from lvdm.training.module import Batch
from lvdm.training.settings import TrainingSettings
from lvdm.training.tasks import Recipe, build_data, is_made, register_task


@dataclass
class TokensSections:
    """The config of task "reference_tokens": `base` and `references` as in task "aicl", data that is made as it is
    needed (puppets), and `tokens`, see TokensConfig. The network is told no captions of references, but the target's.
    """

    base: AICLSections.Base
    data: dict[str, Any]
    references: Any = None
    tokens: TokensConfig = field(default_factory=TokensConfig)

    @property
    def pairs(self) -> ReferenceSettings:
        """Section `references` in full. Raises ConfigError for what it cannot be."""
        return ReferenceSettings.read(self.references)


class ReferenceTokensModule(DiffusionModule):
    """The usual loss of the base model, which sees the references' clean latents among its tokens."""

    phases: ClassVar[dict[str, str]] = DiffusionModule.phases | {"encode_references": "encode"}

    def __init__(
        self, pipeline: VideoPipeline, joint: JointBackbone, settings: TrainingSettings, pairs: PairMaker
    ) -> None:
        for name in ("compile", "cuda_graphs"):
            if getattr(settings, name):
                raise ConfigError(
                    f"task reference_tokens runs its network as it is written: set training.{name} to false"
                )
        pipeline.components.eval()
        super().__init__(pipeline, settings, joint, {"lora": joint.lora})
        self._joint = (joint,)  # in a tuple, since its LoRAs are registered already
        self.pairs = pairs

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each sample, (b,)."""
        batch = self.pairs(batch)
        randomness = self.randomness(batch)
        target = self.encode_target(batch, randomness)
        with torch.no_grad():
            context = self.encode_text(batch["caption"], batch["frames"][:, :, 0])
        shown = ReferenceTokens(self.encode_references(batch), context)
        timesteps, noise = self.draw_noise(batch, target, randomness)
        prediction = self.predict(batch, target, noise, timesteps, context, references=shown)
        return self.squared_error(prediction, target, noise, timesteps)

    @torch.no_grad()
    def encode_references(self, batch: Batch) -> Tensor:
        """The mean of the posterior, (b, k, c, t, h, w): what the network sees at inference too."""
        references = batch["references"]
        mean = self.pipeline.components.codec.posterior(references.flatten(0, 1)).mode()
        return mean.unflatten(0, references.shape[:2])

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """What a row with the method reference_tokens takes as its adapter."""
        save_tokens(folder / ADAPTER_FILE, self._joint[0], meta)


@register_task("reference_tokens", TokensSections)
def build(recipe: Recipe) -> tuple[ReferenceTokensModule, EndlessDataModule]:
    """Task "reference_tokens". Raises ConfigError for sections that do not fit together."""
    sections: TokensSections = recipe.parse(TokensSections)
    pairs = sections.pairs
    if not is_made(sections.data) or (pairs.kind != "self" and not sections.data.get("references")):
        raise ConfigError(
            "task reference_tokens trains on data that is made as it is needed, such as puppets: set data.kind, and "
            "data.references unless references.kind is self"
        )
    if pairs.empties_captions or pairs.feature_noise or pairs.feature_dropout or pairs.wrong_share:
        raise ConfigError(
            "references.caption_dropout, prompt_dropout, feature_noise, feature_dropout and wrong_share are for task "
            "aicl: set them to 0"
        )
    if pairs.captions != "target":
        raise ConfigError("references.captions is for task aicl, since no captions of references are read here")
    check_given(pairs, sections.data.get("references", 0))
    pipeline = build_base_pipeline(sections.base, recipe.training)
    if pipeline.takes_image:
        raise ConfigError("task reference_tokens is for text-to-video models, this one takes an image")
    torch.manual_seed(recipe.run.seed)  # the new layers start the same whatever was drawn for the base model
    joint = JointBackbone(pipeline.components.unet, sections.tokens)
    module = ReferenceTokensModule(pipeline, joint, recipe.training, PairMaker(pairs))
    module.after = "measure it with: aicl reproduce --experiment baselines adapter.reference_tokens=RUN"
    return module, build_data(sections.data, recipe)

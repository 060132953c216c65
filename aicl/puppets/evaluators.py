"""Training of the measuring evaluators, and their files: NAME.safetensors with NAME.yaml beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier, soften
from aicl.puppets.clip import CLIPConfig, PuppetCLIP, contrastive_losses
from lvdm import config as configs
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import CheckpointError
from lvdm.files import atomic_path
from lvdm.training.module import TrainingModule
from lvdm.training.settings import TrainingSettings
from lvdm.training.tasks import Recipe, build_data, register_task

EVALUATORS = {"classifier": (PuppetClassifier, ClassifierConfig), "clip": (PuppetCLIP, CLIPConfig)}
_LOOKS_WEIGHT = 0.3


class ClassifierModule(TrainingModule):
    """Cross-entropy of actions and looks, on clips of which half are softened. Random motions count for looks only."""

    def __init__(self, classifier: PuppetClassifier, settings: TrainingSettings) -> None:
        super().__init__(settings, {"classifier": classifier})

    def losses(self, batch: dict[str, Any]) -> Tensor:
        randomness, frames = self.randomness(batch), batch["frames"]
        amount = randomness.normal((1,))[:, 0].clamp(0, 1)  # half of the clips stay as they are
        prediction = self.trained["classifier"](soften(frames, amount, randomness.normal(frames.shape[1:])))
        action = F.cross_entropy(
            prediction.action.float(), batch["action"], ignore_index=-1, label_smoothing=0.05, reduction="none"
        )
        looks = F.cross_entropy(prediction.looks.float().transpose(1, 2), batch["looks"], reduction="none").mean(1)
        return action + _LOOKS_WEIGHT * looks

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        save_evaluator(folder, "classifier", self.trained["classifier"])


class CLIPModule(TrainingModule):
    """CLIP's contrastive loss over the captions and clips of a device's batch."""

    def __init__(self, clip_model: PuppetCLIP, settings: TrainingSettings) -> None:
        super().__init__(settings, {"clip": clip_model})

    def losses(self, batch: dict[str, Any]) -> Tensor:
        clip_model = cast(PuppetCLIP, self.trained["clip"])
        return contrastive_losses(
            clip_model.encode_text(batch["caption"]),
            clip_model.encode_frames(batch["frames"]),
            clip_model.model.logit_scale,
        )

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        save_evaluator(folder, "clip", self.trained["clip"])


@dataclass
class ClassifierSections:
    """The config of task "puppet_classifier"."""

    data: dict[str, Any]
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)


@dataclass
class CLIPSections:
    """The config of task "puppet_clip"."""

    RENAMED: ClassVar[dict[str, str]] = {"clip": "clip_model"}

    data: dict[str, Any]
    clip_model: CLIPConfig = field(default_factory=CLIPConfig)


@register_task("puppet_classifier", ClassifierSections)
def build_classifier(recipe: Recipe) -> tuple[TrainingModule, EndlessDataModule]:
    """Task "puppet_classifier"."""
    sections: ClassifierSections = recipe.parse(ClassifierSections)
    return ClassifierModule(PuppetClassifier(sections.classifier), recipe.training), build_data(sections.data, recipe)


@register_task("puppet_clip", CLIPSections)
def build_clip(recipe: Recipe) -> tuple[TrainingModule, EndlessDataModule]:
    """Task "puppet_clip"."""
    sections: CLIPSections = recipe.parse(CLIPSections)
    return CLIPModule(PuppetCLIP(sections.clip_model), recipe.training), build_data(sections.data, recipe)


def save_evaluator(folder: str | Path, name: str, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Write `name`.safetensors and `name`.yaml into `folder`; `name` is "classifier" or "clip"."""
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in module.state_dict().items()}
    with atomic_path(Path(folder) / f"{name}.safetensors") as temporary:
        save_file(tensors, temporary)
    configs.save(Path(folder) / f"{name}.yaml", configs.to_mapping(module.config))


def load_evaluator(folder: str | Path, name: str, device: torch.device | str = "cpu") -> nn.Module:
    """Read the evaluator `name` ("classifier" or "clip") from `folder`, in float32 and ready to measure.

    Raises CheckpointError where its files are missing, broken or do not fit together.
    """
    build, config_type = EVALUATORS[name]
    weights = Path(folder) / f"{name}.safetensors"
    description = weights.with_suffix(".yaml")
    if not (weights.is_file() and description.is_file()):
        raise CheckpointError(f"{folder} has no {name}: {weights.name} and {description.name} must both be there")
    module = build(configs.from_mapping(config_type, configs.load(description), name))
    try:
        module.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{weights} does not hold the weights that {description.name} describes: {error}"
        ) from error
    return module.to(device).eval().requires_grad_(False)

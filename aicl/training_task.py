"""Task "aicl": what a training of prism and integration is built of, from the sections of its config."""

import shlex
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig, build_prism
from aicl.adapter import initialise
from aicl.base_defaults import read_integration_config, read_prism_config
from aicl.integrated_backbone import check_fit, integrate
from aicl.model_files import ADAPTER_FILE, base_folder
from aicl.training import AICLModule
from aicl.training_pairs import PairMaker, ReferenceSettings, build_pair_sampler, check_given, pairs_line
from lvdm import config as configs
from lvdm.checkpoints import find_file, load_pipeline, read_model
from lvdm.data import ClipRecord, DataConfig, PairSampler, read_records
from lvdm.data.caching import check_encoders, load_encoders
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline
from lvdm.training.module import DTYPES
from lvdm.training.settings import TrainingSettings
from lvdm.training.strategy import training_device
from lvdm.training.tasks import Recipe, build_data, is_made, register_task


@dataclass
class AICLSections:
    """The config of task "aicl".

    base.path is a model folder, one of diffusers, the name of one on the Hub, or a run of task base (its newest
    checkpoint); base.config builds a model with random weights instead, to measure speed and memory. base.text_on_cpu
    keeps the text encoder of a model of diffusers off the GPU. `references` says what accompanies each target, see
    ReferenceSettings; a number is short for {count: number}, None for {count: 1}.
    Data that is made as it is needed (puppets) brings its own number of clips of the same action, data.references; its
    `references` may say which of them become self-pairs. `reference_dropout`: see AICLModule. `init_from`: an adapter
    file, or a finished run of this task, from whose parameters training starts, with a fresh optimiser; `prism` and
    `integration` have to be those that it was trained with.
    """

    @dataclass
    class Base:
        path: str | None = None
        config: str | dict[str, Any] | None = None
        text_on_cpu: bool = False

    base: Base
    data: dict[str, Any]
    prism: dict[str, Any] = field(default_factory=dict)
    integration: dict[str, Any] = field(default_factory=dict)
    references: Any = None
    reference_dropout: float = 0.0
    init_from: str | None = None

    @property
    def pairs(self) -> ReferenceSettings:
        """Section `references` in full. Raises ConfigError for what it cannot be."""
        return ReferenceSettings.read(self.references)

    def __post_init__(self) -> None:
        if not 0.0 <= self.reference_dropout < 1.0:
            raise ConfigError(f"reference_dropout = {self.reference_dropout} is a share: choose a number in [0, 1)")
        self.pairs  # noqa: B018 (raises ConfigError where it cannot work)
        # Before the base model is loaded, on whose sizes the rest depends.
        configs.check_keys(self.prism, (key.name for key in fields(PrismConfig)), "prism")
        configs.check_keys(self.integration, (key.name for key in fields(IntegrationConfig)), "integration")


@register_task("aicl", AICLSections)
def build(recipe: Recipe) -> tuple[AICLModule, EndlessDataModule]:
    """Task "aicl": see AICLSections. Raises ConfigError for sections that do not fit together."""
    sections: AICLSections = recipe.parse(AICLSections)
    # before the model loads, which takes longer than to find what is wrong with the data
    read = None if is_made(sections.data) else _read_data(sections)
    pipeline = build_base_pipeline(sections.base, recipe.training)
    if sections.base.text_on_cpu:
        pipeline.keep_text_on_cpu()
    if recipe.training.cuda_graphs and not pipeline.supports_cuda_graphs:
        raise ConfigError("training.cuda_graphs captures this library's own networks only: set it to false")
    torch.manual_seed(recipe.run.seed)  # the new layers start the same whatever was drawn for the base model
    config = prism_config(sections.prism, pipeline, recipe.training)
    integration = read_integration_config(sections.integration, pipeline)
    check_fit(config, integration)
    prism = build_prism(config)
    integrated = integrate(pipeline.components.unet, integration)
    if sections.init_from is not None:
        initialise(prism, integrated, find_file(sections.init_from, ADAPTER_FILE))
    clip = sections.data.get("clip") or {}
    if clip.get("num_frames") and clip.get("size"):
        pipeline.prepare_training(clip["num_frames"], tuple(clip["size"]))
    pairs = sections.pairs
    fps = clip.get("fps")  # kept in the adapter
    maker = PairMaker(pairs)
    module = AICLModule(pipeline, prism, integrated, recipe.training, sections.reference_dropout, maker, fps)
    module.after = f"sample it with: {_sampling_command(sections.base, pipeline, clip)}"
    if read is None:
        own = sections.data.get("references", 0)
        if isinstance(sections.references, int) or pairs.wrong_share or (pairs.kind != "self" and not own):
            raise ConfigError(
                "this kind of data brings its own references: set data.references and data.wrong_share, not references "
                "and references.wrong_share; without any, references.kind must be self"
            )
        check_given(pairs, own)
        drawn = build_data(sections.data, recipe)
        drawn.about += _of_one(sections, own or pairs.count)
        return module, drawn
    data, records, sampler = read
    if data.cache and not pipeline.supports_latent_cache:
        raise ConfigError("data.cache holds latents of this library's own models: leave it out with one of diffusers")
    if data.cache and pairs.geometry != 1.0:
        raise ConfigError(
            "references.geometry does nothing with data.cache, whose clips were changed when it was made: set it to 1, "
            "or data.cache to null"
        )
    if data.cache and pairs.empties_captions:
        raise ConfigError(
            "references.caption_dropout and prompt_dropout do nothing with data.cache, which holds what texts became: "
            "set both to 0, or data.cache to null"
        )
    if data.cache and sections.base.path is not None:
        encoders = load_encoders(base_folder(sections.base.path), "cpu")  # in float32, whatever this run computes in
        check_encoders(data.cache, encoders.codec, encoders.text)
    made = build_data(sections.data, recipe, records=records, pair_sampler=sampler, changes=pairs.changes_to_cache)
    made.about += f"; {pairs_line(sampler, pairs)}{_of_one(sections, pairs.count)}"
    if len({record.key for record in records}) == 1:
        made.about += "; reference_gap says nothing here, since a wrong reference would be another clip"
    if other := _unlike_base(pipeline, data):
        made.about += f"; {other}"
    if data.clip.fps is None:
        made.about += (
            "; frames are taken by data.clip.stride, whatever a video's rate, so the adapter keeps none: references "
            f"will be sampled at {pipeline.config.defaults.save_fps} frames a second, the base model's, or at "
            "--reference-fps"
        )
    return module, made


def _of_one(sections: AICLSections, count: int) -> str:
    """In words, that leaving out references does nothing where samples have one; "" where there is nothing to say."""
    if count > 1 or not sections.reference_dropout:
        return ""
    return f"; reference_dropout = {sections.reference_dropout:g} does nothing, since each sample has one reference"


def _read_data(sections: AICLSections) -> tuple[DataConfig, list[ClipRecord], PairSampler]:
    """The videos of section `data`, and how they are paired. Raises ConfigError, DataError."""
    data = configs.from_mapping(DataConfig, sections.data, where="data")
    if data.clip.num_frames < 2:
        raise ConfigError("data.clip.num_frames is 1: a single frame shows no action, so AICL trains on two or more")
    check_given(sections.pairs, 0)
    records = read_records(data)
    return data, records, build_pair_sampler(sections.pairs, records)


def _unlike_base(pipeline: VideoPipeline, data: DataConfig) -> str:
    """In words, that clips are of another length or size than the base model's videos, as where the config is for
    another base model; "" where they are not."""
    own = pipeline.config.defaults
    if (data.clip.num_frames, *data.clip.size) == (own.num_frames, *own.size):
        return ""
    clips = f"{data.clip.num_frames} frames of {data.clip.size[1]}x{data.clip.size[0]}"
    return f"clips of {clips}, where the base model's own videos have {own.num_frames} of {own.size[1]}x{own.size[0]}"


def _sampling_command(base: AICLSections.Base, pipeline: VideoPipeline, clip: dict[str, Any]) -> str:
    """What samples with the adapter of RUN, videos as long and large as the clips where the base's own are not."""
    model = f"--base {shlex.quote(base.path)}" if base.path else "--config RUN/config.yaml"
    command = f'aicl sample {model} --adapter RUN --prompt "..." --references VIDEO'
    defaults, frames, size = pipeline.config.defaults, clip.get("num_frames"), clip.get("size")
    if pipeline.takes_image:
        command += " --image IMAGE"
    if size and tuple(size) != tuple(defaults.size):
        command += f" --size {size[1]}x{size[0]}"
    if frames and frames != defaults.num_frames:
        command += f" --num-frames {frames}"
    return command


def build_base_pipeline(base: AICLSections.Base, settings: TrainingSettings) -> VideoPipeline:
    """The frozen base model: loaded from `base.path`, or random from `base.config`, in the precision of the run."""
    device, dtype = training_device(settings), DTYPES[settings.precision]
    if base.path is not None and base.config is None:
        return load_pipeline(base_folder(base.path), device, dtype)
    if base.config is None or base.path is not None:
        raise ConfigError("give either base.path (a model folder) or base.config (random weights), not both or neither")
    config = read_model(base.config)
    return VideoPipeline(build_components(config, device=device, dtype=dtype), config)


def prism_config(section: dict[str, Any], pipeline: VideoPipeline, settings: TrainingSettings) -> PrismConfig:
    """That of section `prism`, for a training: it recomputes what the base model does."""
    return read_prism_config({"use_checkpoint": settings.gradient_checkpointing, **section}, pipeline)

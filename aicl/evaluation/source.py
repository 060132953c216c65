"""What makes the videos of a row: its model, adapter and settings; by what a video is known."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from aicl.adapter import at_adapter_rate, read_adapter_info
from aicl.evaluation.method import Method
from aicl.evaluation.row import Row
from aicl.evaluation.sample import Clip, Sample
from aicl.model_files import ModelFiles
from aicl.pipeline import AICLPipeline
from lvdm import config as configs
from lvdm.bases.config import DiffusersConfig
from lvdm.bases.loading import is_base, part_files
from lvdm.checkpoints.folder import describe_model
from lvdm.errors import CheckpointError, ConfigError
from lvdm.hashing import file_hash, files_hash, text_hash
from lvdm.models.components import GenerationDefaults, ModelConfig

VERSION = 2  # of how videos are made; raised when the same row comes to give other ones


@dataclass(frozen=True)
class Source:
    """What makes the videos of a row: the files of its model, its settings, and the precision; None for real clips.

    Everything that a video depends on apart from its sample, so equal sources share videos. method: the row's, built;
    pool: where a method reads the references of all samples, a hash of these.
    """

    row: Row
    files: ModelFiles
    dtype: torch.dtype
    compile: Literal["none", "graphs", "full"] = "none"
    method: Method | None = None
    pool: str = ""

    @property
    def reads_adapter(self) -> bool:
        """Whether a trained file is needed beside the base model."""
        return self.row.references > 0 and (self.method is None or self.method.trained)

    @cached_property
    def config(self) -> ModelConfig:
        """The base model's, read once, without its weights. Raises CheckpointError where there is none."""
        return describe_model(self.files.base)

    def parts(self) -> dict[str, Path]:
        """The folder of the base model as "base" and, where references need one, the adapter's file as "adapter".

        Raises CheckpointError where one is not there.
        """
        assert self.config is not None  # read now: a folder that is no model is an error here
        parts = {"base": self.files.base}
        if self.reads_adapter:
            if self.files.adapter is None:
                raise CheckpointError(
                    f"{self.files.base} has no adapter to read references with: give adapter.NAME=FILE"
                )
            if not self.files.adapter.is_file():
                raise CheckpointError(f"there is no adapter {self.files.adapter}")
            parts["adapter"] = self.files.adapter
        return parts

    @cached_property
    def defaults(self) -> GenerationDefaults:
        """The length and rate of its videos, and what else the row leaves open: a row with references has its adapter's
        rate. Raises CheckpointError for what is missing."""
        adapter = self.parts().get("adapter") if self.method is None else None
        return at_adapter_rate(self.config.defaults, None if adapter is None else read_adapter_info(adapter))

    @property
    def guidance_scale(self) -> float:
        """The row's, with references that an adapter reads the folder's own, else the base model's."""
        if self.row.guidance_scale is not None:
            return self.row.guidance_scale
        if self.row.references and self.method is None and self.files.guidance_scale is not None:
            return self.files.guidance_scale
        return self.config.defaults.guidance_scale

    @property
    def first_reference_until(self) -> float:
        """The row's, else the adapter's."""
        until = self.row.first_reference_until
        return self.files.first_reference_until if until is None else until

    def takes_target(self) -> bool:
        """Whether the videos depend on a real clip: an image-to-video model's, or those through the autoencoder."""
        return self.row.kind == "autoencoder" or self.config.takes_image

    def check(self, size: tuple[int, int]) -> None:
        """Raise ConfigError for what a row asks of a model of diffusers that only this library's own can do.

        size: (height, width) of real clips, as they go through an autoencoder.
        """
        config, row = self.config, self.row
        if not isinstance(config, DiffusersConfig):
            return
        why = "is for this library's own networks, and this is a model of diffusers"
        if row.kind == "autoencoder" and (size[0] % config.factor or size[1] % config.factor):
            raise ConfigError(
                f"clips of {size[1]}x{size[0]} pixels do not fit this autoencoder: set benchmark.size to multiples of "
                f"{config.factor}"
            )
        if self.compile == "graphs":
            raise ConfigError(f"compile=graphs {why}: set compile=none, or full")
        if row.step_cache != 1:
            raise ConfigError(f"step_cache {why}: leave it out")
        if row.quantization != "none":
            raise ConfigError(f"quantization {why}: leave it out")

    def settings(self) -> dict[str, Any]:
        """What its videos depend on beside the model's files and the samples; a model's own settings are spelt out."""
        row, own = self.row, self.config.defaults
        settings = {name: getattr(row, name) for name in ("kind", "references", "reference_captions", "scale")}
        settings["dtype"] = str(self.dtype).removeprefix("torch.")
        # what a folder's videos are made with is the same for all of them, which references of a sample are shown, too
        of_references = ("wrong", "chosen_by", "reference_guard")
        settings |= {name: getattr(row, name) for name in of_references if getattr(row, name)}
        if row.kind == "generated":
            settings["guidance_scale"] = self.guidance_scale
            settings["reference_guidance_scale"] = row.reference_guidance_scale
            settings["num_inference_steps"] = (
                own.num_inference_steps if row.num_inference_steps is None else row.num_inference_steps
            )
        if self.method is not None:
            settings["method"] = {"kind": (row.method or {}).get("kind"), **configs.to_mapping(self.method)}
            settings["pool"] = self.pool
        elif row.references > 1:
            settings["first_reference_until"] = self.first_reference_until
        if row.step_cache != 1:
            settings["step_cache"] = row.step_cache
        if row.quantization != "none":
            settings["quantization"] = row.quantization
        if self.compile != "none":  # it rounds differently
            settings["compile"] = self.compile
        return settings

    def key(self, hashes: dict[str, str]) -> str:
        """A hash of model and settings; hashes: those of `parts`."""
        return text_hash([json.dumps([VERSION, self.settings(), hashes], sort_keys=True)])

    def load(self, device: torch.device) -> AICLPipeline:
        """The model. Raises CheckpointError for what is missing."""
        parts = self.parts()
        adapter = parts.get("adapter") if self.method is None else None  # a method's file is none of AICL's
        pipeline = AICLPipeline.from_pretrained(parts["base"], adapter=adapter, device=device, torch_dtype=self.dtype)
        pipeline.first_reference_until = self.files.first_reference_until
        pipeline.guidance_scale = self.files.guidance_scale
        pipeline.quantize(self.row.quantization).accelerate(self.compile)
        return pipeline


def sample_key(row: Row, sample: Sample, content: Callable[[Clip], str], with_target: bool, reading: str) -> str:
    """A hash of all that a video depends on apart from its source: prompt, noise, what is shown, with its captions.

    content: says what a clip holds. with_target: whether the sample's own real clip enters, see `Source.takes_target`.
    reading: which of its frames are compared, and at what size: those that an autoencoder's row encodes.
    """
    what: dict[str, Any] = {"seed": sample.seed, "prompt": sample.prompt}
    if row.kind == "autoencoder":
        what = {"reading": reading}
    if row.references:
        what["references"] = [content(clip) for clip in row.shown(sample)]
        if row.reference_captions != "prompt":
            what["captions"] = reference_captions(row, sample)
    if with_target and sample.target is not None:
        what["target"] = content(sample.target)
    return text_hash([json.dumps(what, sort_keys=True)])


def reference_captions(row: Row, sample: Sample) -> list[str]:
    """A caption for each reference that is shown. Raises ConfigError where a clip has none of this kind."""
    if row.reference_captions == "prompt":
        return [sample.prompt] * row.references
    texts = [clip.caption if row.reference_captions == "own" else clip.bare for clip in row.shown(sample)]
    if None in texts:
        raise ConfigError(
            f"row '{row.label}': the benchmark has no captions of actions alone (bare) for its references"
        )
    return [str(text) for text in texts]


class Hashes:
    """SHA-256 of files and folders, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def __call__(self, parts: dict[str, Path]) -> dict[str, str]:
        """Of the parts of a model, by name."""
        for path in parts.values():
            if path not in self._known:
                self._known[path] = file_hash(path) if path.is_file() else _folder_hash(path)
        return {name: self._known[path] for name, path in parts.items()}


def _folder_hash(folder: Path) -> str:
    """Of all files of a model folder; of one of diffusers those that belong to the pipeline."""
    return files_hash(folder, part_files(folder) if is_base(folder) else None)

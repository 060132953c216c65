"""Rows of a table: whose videos they are, and how these are made."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from aicl.adapter import at_adapter_rate, read_adapter_info
from aicl.evaluation.benchmark import MAX_REFERENCES, Clip, Sample
from aicl.evaluation.method import Method
from aicl.model_files import ModelFiles
from aicl.pipeline import AICLPipeline
from lvdm import config as configs
from lvdm.checkpoints.folder import read_model_config
from lvdm.errors import CheckpointError, ConfigError
from lvdm.hashing import file_hash, files_hash, text_hash
from lvdm.models.components import GenerationDefaults, ModelConfig
from lvdm.models.quantization import Quantization

VERSION = 1  # of how videos are made; raised when the same row comes to give other ones

Kind = Literal["generated", "real", "autoencoder"]


@dataclass(frozen=True)
class Row:
    """One row of a table: where its videos come from.

    kind: "real" are clips that do what the prompt says, "autoencoder" the same after encoding and decoding, which no
    model can beat. model, adapter: names in the preset's sections of these names. references: how many are shown;
    `wrong` ones do another action. chosen_by: they are chosen from a library in this way, one of the benchmark's, and
    may show anything; None: they show the sample's action. reference_captions: the prompt, their own, or the action
    alone ("bare").
    guidance_scale, reference_guidance_scale, first_reference_until, num_inference_steps: None is the model's own, with
    references the adapter's where its folder has one.
    step_cache: steps from one whole call of the UNet to the next, see `lvdm.diffusion.step_cache`. quantization: of the
    UNet's wide linear layers, see `lvdm.models.quantization`.
    method: how references are shown in place of AICL's adapter, see `aicl.evaluation.method`: its kind and settings.
    group: (i, n) keeps the i-th of n equal groups, by how much the references move, from slow (0) to fast.
    baseline: the row that it is compared with sample by sample. paper: the paper's label of it. only: the benchmarks
    that have this row, all by default.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "guidance": "guidance_scale",
        "reference_guidance": "reference_guidance_scale",
        "lead": "first_reference_until",
        "steps": "num_inference_steps",
    }

    label: str
    kind: Kind = "generated"
    model: str | None = None
    adapter: str | None = None
    references: int = 0
    wrong: bool = False
    chosen_by: str | None = None
    reference_captions: Literal["prompt", "own", "bare"] = "prompt"
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    scale: float = 1.0
    first_reference_until: float | None = None
    num_inference_steps: int | None = None
    step_cache: int = 1
    quantization: Quantization = "none"
    method: dict[str, Any] | None = field(default=None, hash=False)
    group: tuple[int, int] | None = None
    baseline: str | None = None
    paper: str | None = None
    only: list[str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.references <= MAX_REFERENCES:
            raise ConfigError(f"row '{self.label}': references must be 0 to {MAX_REFERENCES}, got {self.references}")
        if self.wrong and self.references == 0:
            raise ConfigError(f"row '{self.label}': a wrong reference needs references, got 0")
        if self.chosen_by is not None and (self.references == 0 or self.wrong):
            raise ConfigError(f"row '{self.label}': chosen_by needs references that are not wrong ones")
        if self.group is not None and not 0 <= self.group[0] < self.group[1]:
            raise ConfigError(f"row '{self.label}': group {list(self.group)} must be [i, n] with 0 <= i < n")
        if self.method is not None:
            self._check_method()
        if self.kind != "real" and self.model is None:
            raise ConfigError(f"row '{self.label}' names no model: give one, such as model: lvdm")

    def _check_method(self) -> None:
        """Raise ConfigError for what belongs to AICL's adapter, or to no method."""
        if self.kind != "generated" or self.references == 0:
            raise ConfigError(f"row '{self.label}': a method is for generated videos with references")
        alone: dict[str, Any] = {"reference_guidance_scale": None, "first_reference_until": None, "scale": 1.0}
        for name, default in (alone | {"step_cache": 1, "quantization": "none"}).items():
            if getattr(self, name) != default:
                raise ConfigError(f"row '{self.label}': {name} is a setting of AICL, not of a method: leave it out")

    def shown(self, sample: Sample) -> tuple[Clip, ...]:
        """The references that are shown to a sample; none where the benchmark does not choose in the row's way."""
        if self.chosen_by is not None:
            return tuple(sample.chosen.get(self.chosen_by, ()))[: self.references]
        return (sample.wrong if self.wrong else sample.references)[: self.references]

    def compared(self, sample: Sample) -> Clip:
        """The clip that the sample's video is compared with: the first reference, or that which other rows show."""
        return (sample.wrong if self.wrong else sample.references)[0]

    def contrast(self, sample: Sample) -> Clip | None:
        """A clip of the other of the two actions, None where the benchmark has none."""
        other = sample.references if self.wrong else sample.wrong
        return other[0] if other else None


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
        """The base model's, read once. Raises CheckpointError where there is none."""
        return read_model_config(self.files.base)

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
        return self.row.kind == "autoencoder" or self.config.image is not None

    def settings(self) -> dict[str, Any]:
        """What its videos depend on beside the model's files and the samples; a model's own settings are spelt out."""
        row, own = self.row, self.config.defaults
        settings = {name: getattr(row, name) for name in ("kind", "references", "reference_captions", "scale")}
        settings["dtype"] = str(self.dtype).removeprefix("torch.")
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


def sample_key(row: Row, sample: Sample, content: Callable[[Clip], str], with_target: bool) -> str:
    """A hash of all that a video depends on apart from its source: prompt, noise, what is shown, with its captions.

    content: says what a clip holds. with_target: whether the sample's own real clip enters, see `Source.takes_target`.
    """
    what: dict[str, Any] = {} if row.kind == "autoencoder" else {"seed": sample.seed, "prompt": sample.prompt}
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
                self._known[path] = file_hash(path) if path.is_file() else files_hash(path)
        return {name: self._known[path] for name, path in parts.items()}

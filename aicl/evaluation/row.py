"""Rows of a table: whose videos they are, and what is shown to whom; quick to import."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from aicl.evaluation.sample import MAX_REFERENCES, Clip, Sample
from lvdm.errors import ConfigError

Kind = Literal["generated", "real", "autoencoder"]


@dataclass(frozen=True)
class Row:
    """One row of a table: where its videos come from.

    kind: "real" are clips that do what the prompt says, "autoencoder" the same after encoding and decoding, which no
    model can beat. model, adapter: names in the preset's sections of these names. references: how many are shown;
    `wrong` ones do another action. chosen_by: they are chosen from a library in this way, one of the benchmark's, and
    may show anything; None: they show the sample's action. reference_captions: the prompt, their own, or the action
    alone ("bare").
    reference_guard: the limit of `aicl.known_actions`, by which a sample whose action the base model knows gets none.
    guidance_scale, reference_guidance_scale, first_reference_until: None is the model's own, with references the
    adapter's where its folder has one. num_inference_steps: None is the base model's: rows of a table take as many.
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
    reference_guard: float | None = None
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    scale: float = 1.0
    first_reference_until: float | None = None
    num_inference_steps: int | None = None
    step_cache: int = 1
    quantization: Literal["none", "fp8"] = "none"
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
        if self.reference_guard is not None and (self.references == 0 or not self.reference_guard > 0):
            raise ConfigError(f"row '{self.label}': reference_guard is a number above 0, for a row with references")
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
        for name, default in (alone | {"reference_guard": None, "step_cache": 1, "quantization": "none"}).items():
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

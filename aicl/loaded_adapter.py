"""An adapter on a base model: prism and integration in its memory and type, and how references are read with them."""

from pathlib import Path

from torch import nn

from aicl.action_prism import ActionPrism
from aicl.adapter import AdapterInfo, load_adapter, save_adapter
from aicl.clock import Clock
from aicl.integrated_backbone import IntegratedBackbone
from aicl.motion_features import MotionFeatures
from aicl.options import Reference
from aicl.reference_context import ReferenceContext
from aicl.reference_domain import ReferenceCheck, ReferenceDomain, domain_file, find_domain
from aicl.reference_encoder import ReferenceEncoder
from aicl.reference_encoding import encode_rows, first_alone, is_features, weights_and_spans
from lvdm.errors import ConfigError
from lvdm.pipeline import VideoPipeline


class LoadedAdapter:
    """Prism and integration of `base`, which they are moved and cast to; frozen.

    info: what the adapter's file says, None for one that was not loaded. domain: which references are usual for it.
    """

    def __init__(
        self,
        base: VideoPipeline,
        prism: ActionPrism,
        integrated: IntegratedBackbone,
        info: AdapterInfo | None = None,
        domain: ReferenceDomain | None = None,
    ) -> None:
        self.base, self.prism, self.integrated, self.info, self.domain = base, prism, integrated, info, domain
        self._encoder = ReferenceEncoder(base, prism)
        unet = base.components.unet
        for module in self.trained():
            module.to(device=next(unet.parameters()).device, dtype=unet.dtype).eval().requires_grad_(False)

    @classmethod
    def load(cls, base: VideoPipeline, path: Path) -> "LoadedAdapter":
        """That of an adapter file and of the statistic beside it. Errors and warnings: see `aicl.adapter.load_adapter`.

        Warns where the statistic is of another adapter, and leaves it out.
        """
        domain = find_domain(path)
        prism, integrated, info = load_adapter(path, base.components.unet)
        try:
            return cls(base, prism, integrated, info, None if domain is None else domain.for_prism(prism))
        except BaseException:  # too little memory, or Ctrl-C
            integrated.unpatch()
            raise

    def save(self, path: Path) -> None:
        """Write both files, with what is known of the adapter's training."""
        meta = {} if self.info is None else {"step": self.info.step, "fps": self.info.fps, **self.info.notes}
        save_adapter(path, self.prism, self.integrated, meta)
        if self.domain is not None:
            self.domain.save(domain_file(path))

    def trained(self) -> list[nn.Module]:
        """The two parts that were trained."""
        return [self.prism, self.integrated.blocks]

    def encode(
        self,
        rows: list[list[Reference]],
        prompts: list[str],
        num_frames: int,
        size: tuple[int, int],
        fps: float,
        clock: Clock,
    ) -> tuple[MotionFeatures, list[list[ReferenceCheck]]]:
        """R of rows of references (eq. 4-6), and how far each reference is from the domain, no rows without one.

        The arguments and errors are those of `aicl.reference_encoding.encode_rows`.
        """
        features, latents = encode_rows(self._encoder, rows, prompts, num_frames, size, fps, clock)
        if self.domain is None:
            return features, []
        parts, checks = [part.features for part in features.split()], []
        for i in range(len(features.features)):
            row = rows[min(i, len(rows) - 1)]  # one for all prompts, or one each
            names = [name for each in row for name in _names(each)]
            seen = [None if z is None else z[min(i, len(z) - 1)] for z in latents]
            checks.append(self.domain.check(names, seen, [r[i] for r in parts]))
        return features, checks

    def reference_context(
        self,
        features: MotionFeatures,
        rows: list[list[Reference]],
        samples: int,
        *,
        scale: float,
        first_reference_until: float | None,
        default_until: float,
    ) -> ReferenceContext | None:
        """What the UNet reads for so many samples: R with the references' weights and strength, and when each is read.

        first_reference_until: as in `SamplingOptions`; None is `default_until`, where references don't say when they
        are read. Raises ConfigError for R of another number of prompts, and where both say when.
        """
        if len(features.features) not in (1, samples):
            raise ConfigError(f"these references were encoded for {len(features.features)} prompts, not for {samples}")
        told, schedule = weights_and_spans(rows), self.base.components.schedule
        if all((start, end) == (0, 1) for _, start, end in told):
            told = first_alone(told, default_until if first_reference_until is None else first_reference_until)
        elif first_reference_until:
            raise ConfigError("first_reference_until and references with a start or an end both say when: give one")
        always = all((start, end) == (0, 1) for _, start, end in told)
        return self.integrated.reference_context(
            features.features.to(self.base.device),
            features.frames,
            [weight for weight, _, _ in told],
            scale,
            None if always else [schedule.told_between(start, end) for _, start, end in told],
        )


def _names(reference: Reference) -> list[str]:
    """What messages call a reference; motion features of several videos are several references."""
    if not is_features(reference):
        return [reference.name]
    sources = [source for part in reference.video.split() for source in part.sources]
    return [f"{source} (its motion features)" if source else reference.name for source in sources]

"""Reference tokens in the sequence: the base model itself reads the reference, beside the video that it makes.

What image and video transformers do with a reference (in-context LoRA, arXiv 2410.23775, and many others): its clean
latents go through the same network, the video's queries attend to its tokens as to their own, and a LoRA teaches the
network to use them. In a UNet whose attention is along frames and within them, a query sees, beside its own place in
all frames, that place in all frames of the reference, and beside its own frame that frame of the reference. The
reference attends to itself alone, at timestep 0 and under the same caption. Its rows have a LoRA of their own, so that
the network can tell its tokens from the video's; the unconditional branch of guidance is the base model's.

Trained once for all actions, like AICL, and on as many samples; nothing is adapted for an action.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from aicl.adapter import Fingerprint
from aicl.baselines.attentions import attentions, linear_layers, project
from aicl.baselines.low_rank import LowRankUpdates
from aicl.baselines.shown import check_text_to_video, references_of
from aicl.evaluation.method import METHODS, Maker, Work
from aicl.evaluation.sample import Sample
from aicl.guidance import branches
from lvdm import config as configs
from lvdm.checkpoints import check_entries
from lvdm.checkpoints.integrity import check_hash, check_values, save_hashed
from lvdm.config import check_at_least
from lvdm.diffusion import make_generators
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.attention import Attention, attend, attend_over_time
from lvdm.models.backbone import VideoBackbone, WrappedBackbone, freeze, thaw
from lvdm.models.components import ModelConfig
from lvdm.outside import checked_path, metadata_object, open_tensors

METADATA = "reference_tokens"  # the key of a file's own description
_TARGET, _REFERENCE, _NONE = 0, 1, -1  # which LoRA a row has


@dataclass
class TokensConfig:
    """layers: the kinds of attention whose queries see the reference, and which have a LoRA: temporal, spatial. rank,
    alpha: of the LoRAs, see LowRankUpdates."""

    layers: list[str] = field(default_factory=lambda: ["temporal", "spatial"])
    rank: int = 56
    alpha: float = 56.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("rank",), "tokens")
        check_at_least(self, 0, ("alpha",), "tokens")
        if not self.layers or not set(self.layers) <= {"temporal", "spatial"}:
            raise ConfigError(f"tokens.layers is {self.layers}: choose temporal, spatial or both")


@dataclass(frozen=True)
class ReferenceTokens:
    """Clean latents (r, k, c, t, h, w) of k references, and the contexts (r, tokens, d) of their captions.

    Each of the r rows serves equally many rows of a batch, one after another.
    """

    latents: Tensor
    context: Tensor


@dataclass
class _Call:
    """The present call: of `targets` rows, those from start to stop see the references behind them, k each."""

    rows: int = 0
    targets: int = 0
    start: int = 0
    stop: int = 0
    count: int = 0


class JointBackbone(WrappedBackbone):
    """A frozen UNet that is given references as further rows of its batch; it is called like the one that it holds.

    It acts through its attention layers' methods and through hooks, so the UNet keeps its structure and its keys, and
    `unpatch` gives it back as it was. Gradient checkpointing would compute blocks again without references: it is
    refused. Raises ConfigError for a network whose attention layers are not known.
    """

    def __init__(self, backbone: VideoBackbone, config: TokensConfig) -> None:
        super().__init__(backbone)
        self.config, self._call = config, _Call()
        self._joint = [(layer, kind) for kind in config.layers for layer in attentions(backbone, [kind]).values()]
        if any("forward" in layer.__dict__ or "over_time" in layer.__dict__ for layer, _ in self._joint):
            raise ConfigError(
                "this model reads reference tokens already: call unpatch() on the first patch before another"
            )
        layers = linear_layers(attentions(backbone, config.layers))
        self._frozen = freeze(backbone)
        self.lora = LowRankUpdates(layers, config.rank, config.alpha, count=2)
        self.lora.attach(backbone)
        for layer, kind in self._joint:
            name, method = ("over_time", self._over_time) if kind == "temporal" else ("forward", self._within_frames)
            layer.__dict__[name] = partial(method, layer)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        fps: Tensor | float | None = None,
        references: ReferenceTokens | Sequence[tuple[slice, ReferenceTokens]] | None = None,
    ) -> Tensor:
        """The backbone's prediction for x (b, c, t, h, w), with references among its tokens.

        references: None (the base model, bit for bit), those of the whole batch, or [(rows, those of these rows)].
        Raises ConfigError for references of another size than the video.
        """
        given = [(slice(None), references)] if isinstance(references, ReferenceTokens) else list(references or ())
        if not given:
            plain: Tensor = self.backbone(x, timesteps, context, fps=fps)
            return plain
        if len(given) > 1:
            raise ConfigError("reference tokens stand in one branch of guidance only")
        (rows, shown), targets = given[0], len(x)
        start, stop, _ = rows.indices(targets)
        latents = shown.latents.flatten(0, 1).to(x)
        if latents.shape[1:] != x.shape[1:]:
            raise ConfigError(f"references of {tuple(latents.shape[1:])} do not fit a video of {tuple(x.shape[1:])}")
        count, added = shown.latents.shape[1], len(latents)
        loras = [_TARGET if start <= i < stop else _NONE for i in range(targets)] + [_REFERENCE] * added
        self._begin(_Call(targets + added, targets, start, stop, count), loras)
        x = torch.cat([x, latents])
        timesteps = torch.cat([timesteps, timesteps.new_zeros(added)])
        context = torch.cat([context, shown.context.to(context).repeat_interleave(count, dim=0)])
        if isinstance(fps, Tensor):
            fps = torch.cat([fps, fps[:1].expand(added)])
        try:
            output: Tensor = self.backbone(x, timesteps, context, fps=fps)
        finally:  # a call that goes past this one has no references
            self._begin(None)
        return output[:targets]

    def _begin(self, call: _Call | None, loras: Sequence[int] | None = None) -> None:
        """The next call of the backbone is this one, whose rows have these LoRAs; None: without references."""
        self._call = call or _Call()
        self.lora.use(loras)

    def _over_time(self, layer: Attention, x: Tensor, causal: bool = False) -> Tensor:
        """Temporal attention of a layer, (b, t, s, c) -> same; frames of a reference count from 0 too."""
        call = self._call
        if not call.count:
            return Attention.over_time(layer, x, causal)
        q, k, v = project(layer, x)  # (b, t, s, heads, d)
        rel_k, rel_v = layer.relative_position_k, layer.relative_position_v
        tables = (None, None) if rel_k is None or rel_v is None else (rel_k.embeddings_table, rel_v.embeddings_table)
        clips = 1 + call.count
        joint = (torch.cat([own[call.start : call.stop], self._beside(own).flatten(1, 2)], dim=1) for own in (k, v))
        out = attend_over_time(q[call.start : call.stop], *joint, tables=tables, parts=clips, causal=causal)
        before, after = slice(0, call.start), slice(call.stop, None)
        parts = [
            attend_over_time(q[rows], k[rows], v[rows], tables=tables, causal=causal)
            if len(q[rows])
            else q[rows].flatten(3)
            for rows in (before, after)
        ]
        return layer.to_out(torch.cat([parts[0], out, parts[1]]))

    def _within_frames(
        self, layer: Attention, x: Tensor, context: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Spatial attention of a layer, (b * t, s, c) -> same; frame i sees frame i of each reference."""
        call = self._call
        if not call.count or context is not None:
            return Attention.forward(layer, x, context, causal)
        q, k, v = (part.unflatten(0, (call.rows, -1)) for part in project(layer, x))  # (b, t, s, heads, d)
        keys, values = (
            torch.cat([own[call.start : call.stop], self._beside(own).transpose(1, 2).flatten(2, 3)], dim=2)
            for own in (k, v)
        )
        out = _attend_frames(q[call.start : call.stop], keys, values)
        before, after = slice(0, call.start), slice(call.stop, None)
        parts = [_attend_frames(q[r], k[r], v[r]) if len(q[r]) else q[r].flatten(3) for r in (before, after)]
        return layer.to_out(torch.cat([parts[0], out, parts[1]])).flatten(0, 1)

    def _beside(self, own: Tensor) -> Tensor:
        """Keys or values (b, t, s, heads, d) -> those of the references of each row that sees any, (n, k, t, ...)."""
        shown = own[self._call.targets :].unflatten(0, (-1, self._call.count))
        return shown.repeat_interleave((self._call.stop - self._call.start) // len(shown), dim=0)

    def unpatch(self) -> VideoBackbone:
        """Give the backbone back as it was, `requires_grad` included. Does nothing where that was done already."""
        self.lora.detach()
        for layer, kind in self._joint:
            layer.__dict__.pop("over_time" if kind == "temporal" else "forward", None)
        thaw(self._frozen)
        self._joint, self._frozen = [], []
        return self.backbone

    def enable_gradient_checkpointing(self) -> None:
        """Raise ConfigError, see the class."""
        raise ConfigError("reference tokens do not go together with training.gradient_checkpointing: set it to false")


def _attend_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within each frame, q (b, t, n, heads, d), k and v (b, t, m, heads, d) -> (b, t, n, heads * d)."""
    rows = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))
    return attend(*rows).transpose(1, 2).flatten(2).unflatten(0, q.shape[:2])


def save_tokens(path: str | os.PathLike[str], joint: JointBackbone, meta: Mapping[str, Any] | None = None) -> None:
    """Write the LoRAs as safetensors, atomically, with their settings and what base model they belong to."""
    about = {
        "config": configs.to_mapping(joint.config),
        "family": joint.family,
        "fingerprint": configs.to_mapping(Fingerprint.of(joint.backbone)),
        "notes": dict(meta or {}),
    }
    save_hashed(path, joint.lora.state_dict(), {"format": "pt", METADATA: json.dumps(about)})


def load_tokens(path: str | os.PathLike[str], backbone: VideoBackbone) -> JointBackbone:
    """Patch a UNet with what such a file holds, on its device.

    Raises CheckpointError for a file that is none, damaged, or of another base model.
    """
    where = checked_path(path, CheckpointError)
    with open_tensors(where, CheckpointError, remedy="train it again") as file:
        metadata, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if METADATA not in metadata:
        raise CheckpointError(f"{path} holds no reference tokens: give what a training of task reference_tokens wrote")
    check_hash(state, metadata, where)
    about = metadata_object(metadata, METADATA, where, CheckpointError)
    trained_on = configs.from_mapping(Fingerprint, about.get("fingerprint", {}), where=str(path))
    if about.get("family") != backbone.family or not trained_on.matches(Fingerprint.of(backbone)):
        raise CheckpointError(f"{path} was trained on another base model: use it with its own")
    joint = JointBackbone(backbone, configs.from_mapping(TokensConfig, about.get("config", {}), where=str(path)))
    try:
        check_entries(joint.lora.state_dict(), state, f"the LoRAs of {path} and this model")
        check_values(joint.lora.state_dict(), state, f"the LoRAs of {path} and this model")
        joint.lora.load_state_dict(state)
        joint.lora.to(next(backbone.parameters()).device).requires_grad_(False)
    except BaseException:  # too little memory, or Ctrl-C: nobody could take it off any more
        joint.unpatch()
        raise
    return joint


@METHODS.register("reference_tokens")
@dataclass
class ReferenceTokensMethod:
    """The row's `adapter` is what a training of task reference_tokens wrote; its settings are in the file."""

    trained: ClassVar[bool] = True
    pooled: ClassVar[bool] = False
    several: ClassVar[bool] = True
    captioned: ClassVar[bool] = False

    def check(self, config: ModelConfig, sample: Sample) -> None:
        """Raise ConfigError for an image-to-video model."""
        check_text_to_video(config)

    @contextmanager
    def start(self, work: Work) -> Iterator[Maker]:
        """Patch the base model for the row. Raises CheckpointError, see `load_tokens`."""
        if work.adapter is None:
            raise CheckpointError("reference tokens need a trained file: give adapter.NAME=FILE")
        joint = load_tokens(work.adapter, work.pipeline.base.components.unet)
        try:
            yield partial(_make, work, joint)
        finally:
            joint.unpatch()


@torch.no_grad()
def _make(work: Work, joint: JointBackbone, samples: Sequence[Sample]) -> Tensor:
    """Videos of samples, whose references stand in the conditional branch of guidance."""
    base = work.pipeline.base
    generators = make_generators([sample.seed for sample in samples])
    x_T = base.initial_noise(generators)
    positive, negative = base.conditions([sample.prompt for sample in samples])
    shown = ReferenceTokens(references_of(work, samples), positive.context)
    scale = base.config.defaults.guidance_scale if work.guidance_scale is None else work.guidance_scale
    latents = base.with_unet(joint).sample_latents(
        *branches(negative, positive, shown, scale, None, base.tell_guidance(scale)),
        x_T,
        num_inference_steps=work.num_inference_steps,
        generators=generators,
    )
    return base.decode(latents).cpu()

"""A LoRA for each action: the base model is adapted to clips of an action, then generates without references.

What people do who want one more action: a low-rank update of the attention layers (arXiv 2106.09685), trained on what
clips there are with the base model's own loss, as in MotionDirector (arXiv 2310.08465), whose temporal LoRA holds the
motion. A row's LoRA of an action learns from every reference that the row shows to samples of this action, so
no other method sees more of it. It needs to be trained again for each action; the seconds are kept beside the videos.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from aicl.baselines.attentions import attentions, linear_layers
from aicl.baselines.low_rank import LowRankUpdates, frozen
from aicl.baselines.shown import check_text_to_video, latents_of
from aicl.evaluation.method import ADAPTATION_FILE, METHODS, Maker, Work
from aicl.evaluation.sample import Clip, Sample
from lvdm.checkpoints import check_entries
from lvdm.checkpoints.integrity import check_hash, check_values, save_hashed
from lvdm.config import check_at_least
from lvdm.diffusion import Condition, Denoiser, make_generators, timesteps_from_uniform
from lvdm.errors import CheckpointError, ConfigError, SamplingError
from lvdm.files import write_json
from lvdm.models.components import ModelConfig
from lvdm.outside import open_tensors

FILE = "lora.safetensors"


@METHODS.register("lora")
@dataclass
class LoRA:
    """Settings of the LoRAs of a row, and their training.

    layers: the kinds of attention whose four projections are updated: temporal, spatial, text. rank, alpha: the update
    is alpha / rank * B A. steps: of AdamW, each on batch_size clips and noise levels of every LoRA, drawn from its
    clips with replacement; lr is constant. timesteps: their law, see `timesteps_from_uniform`. at_once: LoRAs trained
    in one call of the network; memory and time depend on it, results but for rounding do not. seed: of all that is
    drawn.
    """

    trained: ClassVar[bool] = False
    pooled: ClassVar[bool] = True
    several: ClassVar[bool] = True
    captioned: ClassVar[bool] = True

    layers: list[str] = field(default_factory=lambda: ["temporal"])
    rank: int = 16
    alpha: float = 16.0
    steps: int = 300
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.01
    timesteps: Literal["uniform", "sqrt"] = "sqrt"
    at_once: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("rank", "steps", "batch_size", "at_once"), "method lora")
        check_at_least(self, 0, ("lr", "weight_decay", "alpha", "seed"), "method lora")

    def check(self, config: ModelConfig, sample: Sample) -> None:
        """Raise ConfigError for an image-to-video model, or samples without labels."""
        check_text_to_video(config)
        if sample.label is None:
            raise ConfigError("a LoRA for each action needs a benchmark whose samples have labels")

    @contextmanager
    def start(self, work: Work) -> Iterator[Maker]:
        """Train the row's LoRAs, or read those that were trained before, and make videos with them.

        Raises CheckpointError for a file in the row's folder that does not fit.
        """
        clips = clips_by_action(work)
        unet, path = work.pipeline.base.components.unet, work.folder / FILE
        if path.is_file():
            lora = self._build(work, sorted(clips))
            _load(path, lora)
        else:
            lora = self.train(work, clips)
            _save(path, lora)
        try:
            with lora.applied(unet):
                yield partial(_make, work, lora, sorted(clips))
        finally:
            lora.detach()

    def train(self, work: Work, clips: dict[str, list[tuple[Clip, str]]]) -> LowRankUpdates:
        """LoRAs of these actions, in order of their names; what it took goes into the row's folder as JSON."""
        names, device = sorted(clips), work.pipeline.device
        unet = work.pipeline.base.components.unet
        latents = {name: latents_of(work, [clip for clip, _ in clips[name]]) for name in names}
        texts = {name: work.pipeline.base.encode_prompt([text for _, text in clips[name]]).clone() for name in names}
        _wait(device)
        begin, parts, losses = monotonic(), [], []
        with frozen(unet), torch.enable_grad():
            for start in range(0, len(names), self.at_once):
                part = self._build(work, names[start : start + self.at_once])
                losses.append(self._train(work, part, names[start : start + self.at_once], latents, texts))
                parts.append(part)
        _wait(device)
        seconds = monotonic() - begin
        lora = self._build(work, names).requires_grad_(False)
        lora.load_state_dict(
            {name: torch.cat([part.state_dict()[name] for part in parts]) for name in lora.state_dict()}
        )
        curve = torch.cat(losses, dim=1)  # (steps, actions)
        finite = torch.stack([value.isfinite().flatten(1).all(1) for value in lora.state_dict().values()]).all(0)
        if broken := [name for name, whole in zip(names, finite.tolist()) if not whole]:
            raise SamplingError(
                f"the LoRA of {', '.join(broken)} has weights that are no numbers after a training at a learning rate "
                f"of {self.lr:g}: lower `lr` of the row's method"
            )
        tenth = max(1, self.steps // 10)
        counts, at_once = sorted(map(len, clips.values())), min(self.at_once, len(names))
        write_json(
            work.folder / ADAPTATION_FILE,
            {
                "summary": f"{len(names)} LoRAs of {lora.size:,} parameters, {self.steps} steps of {self.batch_size} "
                f"on {counts[0]} to {counts[-1]} clips each, adapted in {seconds:.1f} s, {at_once} at once: "
                f"{seconds / len(names):.1f} s an action",
                "seconds": seconds,
                "seconds_each": seconds / len(names),
                "adapters": len(names),
                "at_once": at_once,
                "parameters_each": lora.size,
                "clips": {name: len(clips[name]) for name in names},
                "loss_first": dict(zip(names, curve[:tenth].mean(0).tolist())),
                "loss_last": dict(zip(names, curve[-tenth:].mean(0).tolist())),
            },
        )
        return lora

    def _build(self, work: Work, names: Sequence[str]) -> LowRankUpdates:
        unet = work.pipeline.base.components.unet
        layers = linear_layers(attentions(unet, self.layers))
        made = LowRankUpdates(layers, self.rank, self.alpha, len(names), make_generators(self._seeds(names)))
        return made.to(work.pipeline.device)

    def _seeds(self, names: Sequence[str]) -> list[int]:
        """One for each action, whichever others there are."""
        return [int.from_bytes(sha256(f"{self.seed} {name}".encode()).digest()[:7]) for name in names]

    def _train(
        self,
        work: Work,
        lora: LowRankUpdates,
        names: Sequence[str],
        latents: dict[str, Tensor],
        texts: dict[str, Tensor],
    ) -> Tensor:
        """Train the LoRAs of some actions together; returns the losses (steps, actions).

        Each LoRA's clips, noise levels and noise come from a generator of its own.
        """
        base, device = work.pipeline.base, work.pipeline.device
        unet, schedule = base.components.unet, base.components.schedule
        denoiser, fps = Denoiser(unet, schedule, unet.prediction), base.conditioned_fps()
        optimizer = torch.optim.AdamW(lora.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        generators = make_generators([seed + 1 for seed in self._seeds(names)])
        n, losses = self.batch_size, []
        with lora.applied(unet, [i for i in range(len(names)) for _ in range(n)]):
            for _ in tqdm(range(self.steps), desc=f"adapting to {len(names)} actions", unit="step", leave=False):
                drawn = [
                    (
                        torch.randint(len(latents[name]), (n,), generator=generator),
                        torch.rand(n, generator=generator, dtype=torch.float64),
                        torch.randn((n, *latents[name].shape[1:]), generator=generator),
                    )
                    for name, generator in zip(names, generators)
                ]
                picks = [pick.to(device) for pick, _, _ in drawn]
                z = torch.cat([latents[name][pick] for name, pick in zip(names, picks)])
                context = torch.cat([texts[name][pick] for name, pick in zip(names, picks)])
                t = timesteps_from_uniform(torch.cat([u for _, u, _ in drawn]), len(schedule), self.timesteps)
                t, noise = t.to(device), torch.cat([noise for _, _, noise in drawn]).to(device)
                prediction = denoiser.predict(schedule.add_noise(z, noise, t), t, [Condition(context, fps)])
                loss = denoiser.loss(prediction, z, noise, t).unflatten(0, (len(names), n)).mean(1)
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
                losses.append(loss.detach())
        return torch.stack(losses).cpu()


def clips_by_action(work: Work) -> dict[str, list[tuple[Clip, str]]]:
    """Action -> the different references that the row shows to samples of it, each with its caption."""
    found: dict[str, dict[str, tuple[Clip, str]]] = {}
    for sample in work.samples:
        for clip, text in zip(work.shown(sample), work.captions(sample)):
            content = f"{work.benchmark.content(clip)} {text}"
            found.setdefault(str(sample.label), {})[content] = clip, text
    return {label: [clips[content] for content in sorted(clips)] for label, clips in found.items()}


def _make(work: Work, lora: LowRankUpdates, names: Sequence[str], samples: Sequence[Sample]) -> Tensor:
    """Videos of samples by the LoRAs of their actions, in both branches of guidance, as usual."""
    lora.use([names.index(str(sample.label)) for sample in samples])
    videos: Tensor = work.pipeline(
        [sample.prompt for sample in samples],
        seed=[sample.seed for sample in samples],
        num_inference_steps=work.num_inference_steps,
        guidance_scale=work.guidance_scale,
        progress=False,
    )
    return videos.cpu()


def _save(path: Path, lora: LowRankUpdates) -> None:
    save_hashed(path, lora.state_dict(), {"format": "pt"})


def _load(path: Path, lora: LowRankUpdates) -> None:
    with open_tensors(path, CheckpointError, remedy="delete it, and it is trained again") as file:
        metadata, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_hash(state, metadata, path)
    check_entries(lora.state_dict(), state, f"the LoRAs of {path} and this row")
    check_values(lora.state_dict(), state, f"the LoRAs of {path} and this row")
    lora.load_state_dict(state)
    lora.requires_grad_(False)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

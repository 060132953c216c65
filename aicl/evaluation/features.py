"""Video features for Frechet distances: networks behind one small interface, and a cache of what they said.

A backbone takes frames in [-1, 1], (b, 3, t, h, w), does the preprocessing that its network was made for, and returns
float32 features (b, dim) on the CPU. Its `hash` identifies the weights; `preprocessing` says in words what is done.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aicl.evaluation.accuracy import puppet_verdict
from aicl.evaluation.evaluators.files import import_transformers, pretrained
from aicl.puppets.classifier import PuppetClassifier
from lvdm.errors import CheckpointError, VideoError
from lvdm.files import atomic_path
from lvdm.hashing import file_hash, files_hash, text_hash
from lvdm.video import to_pixels

VERSION = 1
I3D_FILE = "i3d_torchscript.pt"
I3D_SOURCE = (
    "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"  # linked from universome/fvd-comparison
)


class Backbone(Protocol):
    """What the functions here ask of a network."""

    name: str
    dim: int
    min_frames: int
    preprocessing: str
    hash: str

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1], (b, 3, t, h, w) -> features (b, dim), float32, on the CPU."""
        ...


class I3DBackbone:
    """The published FVD network: I3D of Kinetics-400 as TorchScript, its 400 logits as features.

    `path`: the file, or a folder that holds it under its published name. Its forward pass takes 0..255 and, as asked
    here, scales to [-1, 1] and resizes to 224x224 (bilinear) itself. Raises CheckpointError where it is missing.
    """

    dim, min_frames = 400, 10
    name = "i3d-kinetics400"
    preprocessing = "8-bit frames; in the network: to [-1, 1], bilinear to 224x224"

    def __init__(self, path: str | os.PathLike = "checkpoints", device: torch.device | str = "cpu") -> None:
        path = Path(path) / I3D_FILE if Path(path).is_dir() else Path(path)
        if not path.is_file():
            raise CheckpointError(
                f"{path} is not there: get it from {I3D_SOURCE} (the file that StyleGAN-V and fvd-comparison use), "
                "put it there, and compare its SHA-256, which every result states, with that of a colleague's copy"
            )
        self.hash, self.device = file_hash(path), torch.device(device)
        try:
            self.network = torch.jit.load(path, map_location=self.device).eval()
        except RuntimeError as error:
            raise CheckpointError(f"{path} is no TorchScript file: the download broke off or is a web page") from error

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        videos = to_pixels(frames).movedim(-1, 1).to(self.device, torch.float32)  # (b, 3, t, h, w), 0..255
        return self.network(videos, rescale=True, resize=True, return_features=True).float().cpu()


class VideoMAEBackbone:
    """A VideoMAE encoder in a local folder of `transformers`: the mean of its last tokens.

    Less blind to motion than I3D (Ge et al. 2024, "On the content bias in Frechet video distance"). It has a fixed
    number of frames; other clips are read at evenly spread frames. Needs the library transformers.
    """

    min_frames = 2

    def __init__(self, folder: str | os.PathLike, device: torch.device | str = "cpu") -> None:
        self.model = pretrained(import_transformers().VideoMAEModel, folder).to(device).eval()
        config = self.model.config
        self.dim, self.frames, self.size = config.hidden_size, config.num_frames, config.image_size
        self.name, self.hash, self.device = f"videomae-{Path(folder).name}", files_hash(folder), torch.device(device)
        self.preprocessing = (
            f"{self.frames} evenly spread frames, bilinear to {self.size}x{self.size}, ImageNet mean/std"
        )

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        picked = torch.linspace(0, frames.shape[2] - 1, self.frames).round().long()
        images = frames[:, :, picked].to(self.device, torch.float32).transpose(1, 2)  # (b, t, 3, h, w)
        flat = F.interpolate(images.flatten(0, 1), (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (flat.new_tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        videos = ((flat + 1) / 2 - mean).div(std).unflatten(0, images.shape[:2])
        return self.model(videos).last_hidden_state.mean(1).float().cpu()


class PuppetBackbone:
    """The puppet classifier's motion features. `hash` identifies its weights."""

    min_frames = 2
    name = "puppet-classifier"

    def __init__(self, classifier: PuppetClassifier, hash: str) -> None:
        config = classifier.config
        self.classifier, self.hash, self.dim, self.min_frames = classifier, hash, config.features, config.frames
        self.preprocessing = f"{config.frames} frames of {config.size}x{config.size}, as they are"

    def __call__(self, frames: Tensor) -> Tensor:
        return puppet_verdict(self.classifier, frames).features.cpu()


def extract(backbone: Backbone, batches: Iterable[Tensor], *, allow_unequal: bool = False) -> Tensor:
    """Features (n, dim) of all batches of frames (b, 3, t, h, w).

    Raises VideoError for clips that are shorter than the network can take, or of different lengths: a Frechet distance
    between them would measure length too. `allow_unequal` permits the latter.
    """
    features, length = [], None
    for frames in batches:
        length = _check_length(backbone, frames.shape[2], length, allow_unequal)
        features.append(backbone(frames))
    return torch.cat(features) if features else torch.zeros(0, backbone.dim)


class FeatureCache:
    """Features on disk, found again by what went in: the video's content, the clip taken from it, and the network."""

    def __init__(self, folder: str | os.PathLike, backbone: Backbone, clip: str) -> None:
        """`clip` says in words which frames are taken and how they are resized: part of the key."""
        self.folder, self.backbone = Path(folder), backbone
        self._what = (str(VERSION), backbone.name, backbone.hash, backbone.preprocessing, clip)

    def path(self, video_hash: str) -> Path:
        """Where the features of a video with this content are kept."""
        key = text_hash([video_hash, *self._what])
        return self.folder / key[:2] / f"{key}.safetensors"

    def features(
        self,
        paths: Sequence[str | os.PathLike],
        read: Callable[[str | os.PathLike], Tensor],
        *,
        batch_size: int = 16,
        allow_unequal: bool = False,
    ) -> Tensor:
        """Features (n, dim) of the videos `paths`; only those not cached are read, by `read` -> (3, t, h, w).

        The video's content, not its name, decides. Work is saved after every batch. Raises VideoError as `extract`.
        """
        places = [self.path(file_hash(path)) for path in paths]
        files = dict(zip(places, paths))  # of the same content, any
        known = {place: value for place in files if (value := self._read(place)) is not None}
        missing = [(place, path) for place, path in files.items() if place not in known]
        length = None
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            clips = [read(path) for _, path in part]
            for clip in clips:
                length = _check_length(self.backbone, clip.shape[1], length, allow_unequal)
            for group in _same_shape(clips):
                rows = self.backbone(torch.stack([clips[index] for index in group]))
                for index, row in zip(group, rows):
                    place = part[index][0]
                    known[place] = row.clone()
                    with atomic_path(place) as temporary:
                        save_file({"features": known[place]}, temporary)
        return torch.stack([known[place] for place in places]) if places else torch.zeros(0, self.backbone.dim)

    def _read(self, place: Path) -> Tensor | None:
        if not place.is_file():
            return None
        try:
            return load_file(place)["features"]
        except (SafetensorError, KeyError):
            return None  # a damaged entry is computed again


def _check_length(backbone: Backbone, frames: int, before: int | None, allow_unequal: bool) -> int:
    if frames < backbone.min_frames:
        raise VideoError(f"{backbone.name} needs clips of {backbone.min_frames} frames or more, got {frames}")
    if before not in (None, frames) and not allow_unequal:
        raise VideoError(f"clips of {before} and {frames} frames cannot be compared: choose one length for all")
    return frames


def _same_shape(clips: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, clip in enumerate(clips):
        groups.setdefault(tuple(clip.shape), []).append(index)
    return list(groups.values())

"""CLIP models as evaluators: `open_clip`'s, with weights from a file, and `transformers`' from a folder.

**Activation.** Some weights (OpenAI's, MetaCLIP's, DFN's) were trained with QuickGELU, x * sigmoid(1.702 x), others
(LAION's, DataComp's) with GELU. open_clip has two model names for the two ("ViT-L-14-quickgelu" and "ViT-L-14"), and
the wrong one loads without a word and gives other numbers. So the file decides, not the name, see `activation_of`.
"""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.evaluators.files import import_transformers, pretrained, pretrained_model, require_file
from aicl.evaluation.metric import register_evaluator
from lvdm.errors import CheckpointError, ConfigError
from lvdm.hashing import file_hash, files_hash

Activation = Literal["GELU", "QuickGELU"]
_QUICK, _PLAIN = "-quickgelu", "-gelu"
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIP:
    """What both kinds of CLIP share: "frames" (b, t, d) and, of prompts, "prompt" (b, d), unit vectors, float32."""

    role, version, min_frames = "clip", 1, 1
    name: str
    hash: str

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors (b, d), float32."""
        raise NotImplementedError

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1], (b, 3, t, h, w) -> unit vectors (b, t, d), float32."""
        raise NotImplementedError

    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1] -> "frames" (b, t, d)."""
        return {"frames": self.encode_frames(frames)}

    def observe_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts -> "prompt" (b, d)."""
        return {"prompt": self.encode_text(prompts)}


class OpenCLIP(CLIP):
    """A model of open_clip by its name ("ViT-L-14"), with weights from a local file: nothing is fetched.

    The activation is the file's, see `choose_model`; `name` says which. Frames are resized (bicubic, antialiased) to
    cover the model's square, centre-cropped and normalised, as the model's own preprocessing does. Raises ConfigError
    for an unknown model or an activation that cannot be told, CheckpointError for weights that do not fit.
    """

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str], model: str) -> None:
        import open_clip  # slow to import

        if model not in open_clip.list_models() and model.removesuffix(_PLAIN) not in open_clip.list_models():
            raise ConfigError(f"open_clip has no model '{model}': choose one of open_clip.list_models()")
        path = require_file(
            path,
            f"weights of the CLIP model {model}",
            "download them (open_clip's list of pretrained models says where they are) and give the file",
        )
        self.hash, self.device = file_hash(path), torch.device(device)
        model = choose_model(model, path, self.hash)
        try:
            self.model = open_clip.create_model(model, pretrained=None, device=device)
            _load(self.model, path)
        except Exception as error:  # open_clip and torch raise many kinds for files that are no weights, or others'
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} does not hold the weights of {model}: {line}") from error
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.name = f"open_clip {model}"
        visual = self.model.visual
        self.size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        mean, std = (getattr(visual, key, None) for key in ("image_mean", "image_std"))
        self.mean, self.std = _normalisation(mean, std, device)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors (b, d), float32."""
        tokens = self.tokenizer(list(captions)).to(self.device)
        features: Tensor = self.model.encode_text(tokens, normalize=True)
        return features.float()

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1], (b, 3, t, h, w) -> unit vectors (b, t, d), float32."""
        images = clip_images(frames.to(self.device), self.size, self.mean, self.std)
        features: Tensor = self.model.encode_image(images, normalize=True)
        return features.float().view(len(frames), -1, features.shape[1])


class TransformersCLIP(CLIP):
    """A CLIP of `transformers` in a local folder, whose config says its activation.

    Frames are prepared as for `OpenCLIP`. Raises ConfigError where transformers is missing, CheckpointError where the
    folder holds no CLIP.
    """

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str]) -> None:
        transformers = import_transformers()
        self.model = pretrained_model(transformers.CLIPModel, path).to(device).eval().requires_grad_(False)
        self.tokenizer = pretrained(transformers.CLIPTokenizer, path)
        config = self.model.config.vision_config
        self.size, self.device = config.image_size, torch.device(device)
        self.name, self.hash = f"transformers CLIP {Path(path).name}, {config.hidden_act}", files_hash(path)
        said = _read_json(Path(path) / "preprocessor_config.json")
        self.mean, self.std = _normalisation(said.get("image_mean"), said.get("image_std"), device)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors (b, d), float32."""
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(self.device)
        pooled = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1], (b, 3, t, h, w) -> unit vectors (b, t, d), float32."""
        images = clip_images(frames.to(self.device), self.size, self.mean, self.std)
        features: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=images).pooler_output)
        return F.normalize(features.float(), dim=-1).view(len(frames), -1, features.shape[1])


def build_clip(device: torch.device | str, path: str | os.PathLike[str], model: str | None = None) -> CLIP:
    """The evaluator "clip": a file of weights with open_clip's name of the model, or a folder of a `transformers` CLIP.

    Raises ConfigError for a file without a model, an unknown model or an activation that cannot be told,
    CheckpointError for weights that are missing or do not fit.
    """
    if Path(path).is_dir():
        return TransformersCLIP(device, path)
    if model is None:
        raise ConfigError(f"{path}: say with `model` which CLIP this is, by open_clip's name, such as ViT-L-14")
    return OpenCLIP(device, path, model)


def clip_images(frames: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Frames in [-1, 1], (b, 3, t, h, w) -> normalised images (b * t, 3, size, size).

    Bicubic with antialiasing to cover the square, then the centre of it: CLIP's published preprocessing.
    """
    h, w = frames.shape[-2:]
    images = frames.float().transpose(1, 2).flatten(0, 1)
    scale = size / min(h, w)
    covered = (max(size, round(h * scale)), max(size, round(w * scale)))
    images = F.interpolate(images, covered, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = (covered[0] - size) // 2, (covered[1] - size) // 2
    images = images[:, :, top : top + size, left : left + size]
    return ((images + 1) / 2 - mean) / std


def choose_model(model: str, weights: Path, sha256: str) -> str:
    """open_clip's name of `model` with the activation that `weights` were trained with.

    What the file says wins over the name, with a warning where they differ. Where the file does not say, a name that
    does ("-quickgelu", or our "-gelu" for the plain model) is believed, and so is the only variant of a model that has
    one. Raises ConfigError where neither says: the numbers would be wrong without anyone noticing.
    """
    import open_clip

    names, base = set(open_clip.list_models()), model.removesuffix(_QUICK).removesuffix(_PLAIN)
    variants = {name for name in (base, base + _QUICK) if name in names}
    asked: Activation | None = "QuickGELU" if model.endswith(_QUICK) else "GELU" if model.endswith(_PLAIN) else None
    found = activation_of(weights, sha256)
    if found is None and asked is None and len(variants) == 2:
        raise ConfigError(
            f"{weights} does not say whether its weights are for GELU or QuickGELU: name the model {base}{_QUICK} for "
            f"weights of OpenAI, MetaCLIP or DFN, {base}{_PLAIN} for those of LAION or DataComp"
        )
    if found is not None and asked not in (None, found):
        warnings.warn(f"{weights} was trained with {found}, not {asked}: {found} is used", stacklevel=3)
    wanted = found or asked
    chosen = base + _QUICK if wanted == "QuickGELU" else base
    return chosen if chosen in variants else next(iter(variants))


def activation_of(weights: Path, sha256: str) -> Activation | None:
    """The activation that a file of CLIP weights was trained with, or None where nothing says so.

    OpenAI's TorchScript archives are known by their form, the files of open_clip's own list by their SHA-256, and
    others by an `open_clip_config.json` beside them.
    """
    if is_torchscript(weights):
        return "QuickGELU"
    for part, quick in _published_hashes().items():
        if sha256.startswith(part):
            return "QuickGELU" if quick else "GELU"
    config = _read_json(weights.with_name("open_clip_config.json"))
    if isinstance(said := config.get("model_cfg"), dict):
        return "QuickGELU" if said.get("quick_gelu") else "GELU"
    return None


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, the form in which OpenAI publishes CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _published_hashes() -> dict[str, bool]:
    """Beginnings of SHA-256 that open_clip's list of pretrained files states in its addresses -> whether QuickGELU."""
    from open_clip import get_pretrained_cfg, list_pretrained

    found = {}
    for model, tag in list_pretrained():
        entry: dict[str, Any] = get_pretrained_cfg(model, tag)
        match = re.search(r"/([0-9a-f]{64})/|-([0-9a-f]{8})\.pth?$", entry.get("url") or "")
        if match:
            found[match[1] or match[2]] = bool(entry.get("quick_gelu"))
    return found


def _load(model: torch.nn.Module, path: Path) -> None:
    """Fill a model of open_clip, strictly, from a TorchScript archive, a pickle of tensors or safetensors."""
    if not is_torchscript(path):
        from open_clip import load_checkpoint

        load_checkpoint(model, os.fspath(path), strict=True)
        return
    state = torch.jit.load(path, map_location="cpu").state_dict()
    sizes = ("input_resolution", "context_length", "vocab_size")
    model.load_state_dict({key: value.float() for key, value in state.items() if key not in sizes}, strict=True)


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    values = (mean or _OPENAI_MEAN, std or _OPENAI_STD)
    first, second = (torch.tensor(value, device=device, dtype=torch.float32)[:, None, None] for value in values)
    return first, second


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


register_evaluator("clip", build_clip)

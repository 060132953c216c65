"""Every kind of file that people give this library: a whole one, how to read it, and ways to spoil it.

What reads a file may raise UserError and nothing else.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save, save_file

from aicl.action_integration import IntegrationConfig
from aicl.action_library import METADATA, ActionLibrary
from aicl.action_prism import PrismConfig
from aicl.adapter import AdapterInfo, Fingerprint, read_adapter
from aicl.apps.user_study.pairs import read_manifest
from aicl.evaluation.generated import read_generated
from aicl.evaluation.results import read_result
from aicl.motion_features import MotionFeatures
from aicl.reference_domain import ReferenceDomain
from aicl.reference_retrieval import load_library
from aicl.sampling_jobs import read_jobs
from lvdm.checkpoints import read_checkpoint, read_published_config
from lvdm.checkpoints.folder import read_model_config, read_part
from lvdm.config import from_mapping, load, to_mapping
from lvdm.data import ClipCache, DataConfig, read_folder, read_report, read_split, read_webvid
from lvdm.models.components import ModelConfig, build_components
from lvdm.models.text import TextConfig
from lvdm.video import check_video, load_clip, read_animation, write_video
from tests.lvdm.published import published_yaml
from tests.lvdm.videos import pixels

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"


@dataclass(frozen=True)
class Format:
    """A kind of file. name: what the file is called. whole: an example that can be read, as bytes or as the object that
    `dump` writes. read: takes the path. beside: what else lies in the folder."""

    name: str
    whole: Any
    read: Callable[[Path], Any]
    dump: Callable[[Any], bytes] | None = None
    beside: dict[str, bytes] = field(default_factory=dict)

    def write(self, content: Any) -> bytes:
        """The file's bytes for a content of the kind of `whole`."""
        return content if self.dump is None else self.dump(content)


# What cannot be dumped as such stands in for it in texts.
DEEP, LONG, HUGE, NAN = "@DEEP@", "@LONG@", "@HUGE@", "@NAN@"
_WRITTEN = {DEEP: "[" * 9000 + "]" * 9000, LONG: "9" * 6000, HUGE: "1e999", NAN: "NaN"}
SPOILT_VALUES = [
    None, True, False, 0, -1, 1, 3.5, 2**31, 10**12, 10**17, -(10**17), 1e300, "", " ", "a", "\0", "\ud800", "x" * 300,
    "../../x", "/", ".", "http:x", "a\nb", [], {}, [[]], [None], {"": 0}, ["a", 1], DEEP, LONG, HUGE, NAN,
    "${a}", "???",
]  # fmt: skip


def as_json(value: Any) -> bytes:
    text = json.dumps(value)
    for mark, written in _WRITTEN.items():
        text = text.replace(f'"{mark}"', written)
    return text.encode()


def as_json_lines(rows: Any) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return b"".join(as_json(row) + b"\n" for row in rows)


def as_yaml(value: Any) -> bytes:
    return as_json(value)  # which is YAML, too


def as_safetensors(key: str) -> Callable[[Any], bytes]:
    def dump(about: Any) -> bytes:
        tensors = {"features": torch.zeros(1, 4, 2, 2, 2)}
        return save(tensors, {"format": "pt", key: as_json(about).decode()})

    return dump


def as_library_part(about: Any) -> bytes:
    vectors = {name: torch.ones(1, 4) for name in ("text", "motion", "appearance")}
    return save(vectors, {METADATA: as_json(about).decode()})


def build(path: Path) -> None:
    """Read a model's config and build its parts without memory."""
    build_components(from_mapping(ModelConfig, load(path), where=str(path)), init="meta")


def tokenizer(path: Path) -> None:
    TextConfig(width=8, layers=1, heads=1, tokenizer=str(path)).build_tokenizer()(["a person"])


def video(path: Path) -> None:
    info = check_video(path)
    load_clip(path, 4, (8, 8), fps=8)
    assert info.num_frames > 0


@lru_cache
def _video(name: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if path.suffix in (".mp4", ".gif", ".webp"):
            write_video(path, pixels(6, 32, 48), fps=8)
        else:
            from tests.lvdm.videos import encode

            encode(path, frames=6, codec="mpeg4")
        return path.read_bytes()


def _pickle(legacy: bool) -> bytes:
    stream = io.BytesIO()
    state = {"state_dict": {"model.diffusion_model.a": torch.zeros(3), "first_stage_model.b": torch.ones(2, 2)}}
    torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _part(path: Path) -> None:
    if path.name.endswith(".index.json"):
        shard = path.with_name("unet-00001-of-00001.safetensors")
        save_file({"a": torch.zeros(2)}, shard)
    read_part(path.parent, "unet")


def _library(path: Path) -> None:
    ActionLibrary.open(path.parent).search("he runs", by="verbs")


def _folder(path: Path) -> None:
    read_folder(path.parent, path)


def _jobs(path: Path) -> None:
    read_jobs({"out": str(path.parent / "out")}, path)


def _adapter() -> dict[str, Any]:
    fingerprint = Fingerprint("abc", [0.5, 1.0])
    return to_mapping(AdapterInfo(PrismConfig(), IntegrationConfig(), "lvdm", {"a": 8}, fingerprint, 3))


ROWS = [{"file": "a.mp4", "caption": "a man runs", "label": "run"}, {"file": "b.mp4", "caption": "a dog, big, swims"}]
TABLE = b'file,caption,label\na.mp4,a man runs,run\nb.mp4,"a dog, big, swims",\n'
VIDEOS = {"a.mp4": b"", "b.mp4": b"", "page/7.mp4": b""}
CLIP = {"num_frames": 4, "size": [16, 16], "fps": 8, "augmentation": {"random_crop": True, "cached_crops": None}}
DATA = {"kind": "folder", "path": "videos", "captions": None, "part": "all", "workers": 2, "clip": CLIP}
MODEL = yaml.safe_load((MODELS / "tiny_videocrafter.yaml").read_text())
PUBLISHED = published_yaml("videocrafter2_t2v_512")
INDEX = {"format": 1, "videos": [{"path": "a.mp4", "caption": "a man runs", "verbs": ["run"], "phrase": None}]}
PROTOCOL = {"data": "d", "generated": 1, "real": 1, "frames": 4, "size": [8, 8], "seeds": [0], "prompts": "p"}
RESULT = {"format": 2, "row": "a", "model": {}, "metrics": {}, "protocol": PROTOCOL | {"real_list": "r", "fps": 8.0}}
PAIRS = [{"prompt": "a man runs", "ours": "a.mp4", "baseline": "b.mp4", "group": "g"}]
FEATURES = {"format": 1, "frames": [4], "sources": ["a.mp4"], "prism": {"structure": "abc", "samples": [0.5]}}

GAUSSIAN = {"mean": [0.5, 1.0], "scale": [1.0, 2.0], "precision": [[1.0, 0.1], [0.1, 1.0]], "limit": 3.0}
PRISM = {"structure": "abc", "samples": [0.5]}
DOMAIN = {"prism": PRISM, "latents": GAUSSIAN, "features": GAUSSIAN, "clips": 9, "held_out": 3, "false_alarms": 0.1}
DOMAIN |= {"format": 1}
LIBRARY = {"format": 1, "identity": {"version": 1}}
LIBRARY_FILES = {"a.mp4": b""}
CLIP_OF_LIBRARY = {"path": "a.mp4", "caption": "a man runs", "verbs": ["run"], "phrase": None, "stamp": [0, 1]}
PART = as_library_part({"format": 1, "videos": [CLIP_OF_LIBRARY]})

FORMATS = {
    "config": Format("run.yaml", {"extends": "other.yaml", "data": DATA}, load, as_yaml, {"other.yaml": b"seed: 1\n"}),
    "data section": Format("data.yaml", DATA, lambda path: from_mapping(DataConfig, load(path), "data"), as_yaml),
    "model config": Format("config.yaml", MODEL, build, as_yaml),
    "model folder": Format("config.yaml", MODEL, lambda path: read_model_config(path.parent), as_yaml),
    "published config": Format("model.yaml", PUBLISHED, read_published_config, as_yaml),
    "split": Format("split.yaml", {"unseen": ["Archery", "YoYo"]}, read_split, as_yaml),
    "captions.csv": Format("captions.csv", TABLE, _folder, beside=VIDEOS),
    "captions.jsonl": Format("captions.jsonl", ROWS, _folder, as_json_lines, VIDEOS),
    "caption.txt": Format(
        "a.txt",
        b"a man runs\n",
        lambda path: read_folder(path.parent),
        beside={"a.mp4": b"", "b.mp4": b"", "b.txt": b"x"},
    ),
    "webvid": Format(
        "results.csv",
        b"videoid,contentUrl,duration,page_dir,name\n7,u,PT1S,page,a man runs\n",
        lambda path: read_webvid(path, path.parent),
        beside=VIDEOS,
    ),
    "prompts": Format("prompts.txt", [{"prompt": "a man runs", "seed": 3, "num_samples": 2}], _jobs, as_json_lines),
    "index": Format("index.json", INDEX, load_library, as_json),
    "report": Format("report.json", {"broken": {"a.mp4": "why"}, "checked": 3}, read_report, as_json),
    "cache": Format("cache.json", {"format": 1, "settings": {"seed": 0}}, lambda path: ClipCache(path.parent), as_json),
    "shard index": Format(
        "unet.safetensors.index.json", {"weight_map": {"a": "unet-00001-of-00001.safetensors"}}, _part, as_json
    ),
    "shard": Format("unet.safetensors", save({"a": torch.zeros(2), "b": torch.ones(3)}, {"format": "pt"}), _part),
    "adapter": Format("adapter.safetensors", _adapter(), read_adapter, as_safetensors("aicl")),
    "features": Format("r.safetensors", FEATURES, MotionFeatures.load, as_safetensors("aicl_references")),
    "domain": Format("adapter.domain.json", DOMAIN, ReferenceDomain.load, as_json),
    "library": Format("library.json", LIBRARY, _library, as_json, {**LIBRARY_FILES, "parts/00000.safetensors": PART}),
    "library part": Format(
        "parts/00000.safetensors",
        {"format": 1, "videos": [CLIP_OF_LIBRARY]},
        lambda path: _library(path.parent),
        as_library_part,
        LIBRARY_FILES | {"library.json": json.dumps(LIBRARY).encode(), "parts/notes": b""},
    ),
    "checkpoint": Format("model.ckpt", _pickle(legacy=False), read_checkpoint),
    "legacy checkpoint": Format("old.ckpt", _pickle(legacy=True), read_checkpoint),
    "safetensors": Format("model.safetensors", save({"model.a": torch.zeros(2)}), read_checkpoint),
    "result": Format("result.json", RESULT, read_result, as_json),
    "generated": Format("list.jsonl", ROWS, lambda path: read_generated(path.parent, path), as_json_lines, VIDEOS),
    "study": Format("pairs.jsonl", PAIRS, read_manifest, as_json_lines, VIDEOS),
    "words": Format("words.json", ["a", "person", "runs"], tokenizer, as_json),
    "mp4": Format("a.mp4", _video("a.mp4"), video),
    "gif": Format("a.gif", _video("a.gif"), video),
    "webp": Format("a.webp", _video("a.webp"), read_animation),
    "avi": Format("a.avi", _video("a.avi"), video),
}

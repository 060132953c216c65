"""What is killed: each function is the whole work of a process, and can be called again after a kill to go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aicl.apps.user_study import Store, Study, open_study, prepare, read_manifest
from aicl.cli import export
from lvdm import config as configs
from lvdm.data import AugmentationConfig, ClipCache, ClipConfig, cache_settings, read_folder
from lvdm.data.caching import cache_clips, cache_texts, encoder_settings
from lvdm.data.checking import check_records
from lvdm.models.components import ModelConfig, build_components
from lvdm.training import train
from tests.lvdm.training_runs import MODEL

CLIP = ClipConfig(
    num_frames=2, size=(16, 16), augmentation=AugmentationConfig(random_crop=True, flip=0.5, cached_crops=4)
)


def train_run(config: dict[str, Any]) -> None:
    train(config, resume="auto")


def fill_cache(folder: str, clips: str) -> None:
    torch.manual_seed(0)
    components = build_components(configs.from_mapping(ModelConfig, configs.load(MODEL))).eval()
    settings = cache_settings(CLIP, 0) | encoder_settings(components.codec, components.text, "float32")
    cache, records = ClipCache.create(folder, settings), read_folder(clips)
    cache_texts(cache, [record.caption for record in records], components.text)
    cache_clips(cache, records, CLIP, 0, components.codec)


def check_clips(report: str, clips: str) -> None:
    check_records(read_folder(clips), report)


def export_model(out: str, base: str, adapter: str) -> None:
    if not Path(out).exists():  # what is there already is whole, which is checked elsewhere
        export.main(export.parser().parse_args(["--base", base, "--adapter", adapter, "--out", out]))


def answer_study(folder: str, manifest: str, accepted: str) -> None:
    """Prepare the study, then answer without an end; `accepted` gets a line for each answer that was kept."""
    study, _ = prepare(folder, read_manifest(manifest))
    code, count = study.join().code, 0
    with open(accepted, "a", encoding="utf-8") as file:
        while True:
            place, question = count % study.total, ("uscc", "usfc")[count // study.total % 2]
            choice = ("left", "right")[count // (2 * study.total) % 2]
            study.answer(code, place, question, choice)
            file.write(json.dumps([code, place, question, choice]) + "\n")
            file.flush()
            count += 1


def kept_answers(folder: str) -> Callable[[str, int, str], str | None]:
    """(code, place, question) -> the choice that the study in `folder` has, read as another process would."""
    study: Study = open_study(folder)
    assert isinstance(study.store, Store)
    return lambda code, place, question: study.view(code, place).answers.get(question)

"""The pictures of presets, drawn with tiny models of the puppet world."""

import pytest
from PIL import Image

from aicl.evaluation.engine import Experiment
from aicl.evaluation.preset_files import preset_files
from aicl.evaluation.presets import load_preset
from tests.aicl.evaluation_models import FRAMES, save_tiny_evaluators, save_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "lvdm")
    save_tiny_evaluators(folder / "evaluators")
    return folder


@pytest.mark.parametrize(
    ("name", "references", "rows"), [("features", 1, 5), ("motion_features", 2, 4), ("attention", 1, 4)]
)
def test_each_kind_of_picture_is_one_sheet_a_sample(models, tmp_path, name, references, rows):
    changes = [
        f"benchmark.frames={FRAMES}",
        f"model.lvdm={models / 'lvdm' / 'base'}",
        f"adapter.lvdm={models / 'lvdm' / 'adapter.safetensors'}",
        f"evaluators.classifier.path={models / 'evaluators'}",
        f"evaluators.clip.path={models / 'evaluators'}",
    ]
    preset = load_preset(preset_files(f"experiment_{name}", "puppets"), changes)
    (spec,) = preset.pictures
    assert (spec.kind, spec.references) == (name, references)
    spec.samples = 2
    written = Experiment(preset, tmp_path, "cpu").draw(f"experiment_{name}")
    assert [path.name for path in written] == [f"experiment_{name}-{name}-{index}.png" for index in range(2)]
    for path in written:
        image = Image.open(path)
        assert image.width >= FRAMES * 64 and image.height >= rows * 64

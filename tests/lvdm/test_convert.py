"""Tiny published checkpoints become folders that give the ancestors' numbers; our configs fit the full-size ones."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from aicl.cli import run_verb
from lvdm.checkpoints import convert as convert_module
from lvdm.checkpoints import (
    convert_checkpoint,
    family_of,
    load_pipeline,
    read_published_config,
    save_pipeline,
)
from lvdm.checkpoints.folder import read_part, write_part
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.components import build_components
from tests.lvdm.published import FIGURES, model_config, published_yaml, tiny_checkpoint
from tests.parity.rebuild import figure, full_layouts, inputs


@pytest.fixture
def published(tmp_path):
    """A function that writes the tiny checkpoint of a published model and gives its path and config."""

    def write(model, wrap=lambda state: {"state_dict": state}):
        state, config = tiny_checkpoint(model)
        torch.save(wrap(state), tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt", config

    return write


@pytest.mark.parametrize("model", FIGURES)
def test_a_converted_checkpoint_gives_the_ancestors_numbers(published, tmp_path, model):
    source, config = published(model)
    assert family_of(source).config == model
    convert_checkpoint(source, tmp_path / "folder", config)
    pipe = load_pipeline(tmp_path / "folder")
    assert pipe.config == config
    parameters, expected = figure(FIGURES[model])
    x, context = (inputs(name, parameters[name]) for name in ("x", "context"))
    fps = None if parameters["fps"] is None else torch.tensor(parameters["fps"])
    with torch.no_grad():
        y = pipe.components.unet(x, torch.tensor(parameters["timesteps"]), context, fps=fps)
    torch.testing.assert_close(y, torch.from_numpy(expected["y"]), rtol=0, atol=1e-4)
    video = pipe("a person jumps", image=torch.zeros(16, 16, 3, dtype=torch.uint8) if config.image else None)
    assert video.shape == (1, 4, 16, 16, 3)


@pytest.mark.parametrize("model", full_layouts())
def test_full_size_configs_fit_the_published_layouts_exactly(monkeypatch, tmp_path, model):
    state = {name: torch.empty(shape, device="meta") for name, shape in full_layouts()[model].items()}
    monkeypatch.setattr(convert_module, "read_checkpoint", lambda source, **options: state)
    written = {}
    monkeypatch.setattr(
        convert_module, "write_part", lambda folder, part, entries, dtype: written.update({part: entries})
    )
    convert_checkpoint("model.ckpt", tmp_path / "folder", model_config(model))
    modules = build_components(model_config(model), init="meta").modules()
    assert written.keys() == modules.keys()
    for part, module in modules.items():
        assert {name: tensor.shape for name, tensor in written[part].items()} == {
            name: tensor.shape for name, tensor in module.state_dict().items()
        }


def test_moving_averages_and_dtype_are_chosen_by_the_caller(published, tmp_path):
    def averaged(state):
        prefix, name = "model.diffusion_model.", "out.2.bias"
        return {"state_dict": state | {f"model_ema.diffusion_model{name.replace('.', '')}": -state[prefix + name]}}

    source, config = published("lvdm_t2v_256", averaged)
    convert_checkpoint(source, tmp_path / "weights", config)
    convert_checkpoint(source, tmp_path / "averages", config, ema=True, dtype=torch.float16)
    weights, averages = (read_part(tmp_path / name, "unet") for name in ("weights", "averages"))
    assert weights.keys() == averages.keys()
    for name, tensor in weights.items():
        assert averages[name].dtype == torch.float16
        expected = -tensor if name == "out.2.bias" else tensor
        torch.testing.assert_close(averages[name], expected.half(), rtol=0, atol=0)
    assert load_pipeline(tmp_path / "averages").components.unet.dtype == torch.float16
    assert load_pipeline(tmp_path / "averages", dtype=torch.float32).components.unet.dtype == torch.float32


def test_large_parts_are_written_in_shards(tmp_path):
    state = {f"layer.{i}.weight": torch.full((256,), float(i)) for i in range(5)}
    write_part(tmp_path, "unet", state, limit=2048)  # two entries of 1 KiB each
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [f"unet-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "unet.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 1024
    assert index["weight_map"]["layer.4.weight"] == names[2]
    found = read_part(tmp_path, "unet")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    (tmp_path / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: {names[1]} is missing"):
        read_part(tmp_path, "unet")


@pytest.mark.parametrize(
    ("model", "config_of", "message"),
    [
        (
            "lvdm_t2v_256",
            "videocrafter2_t2v_512",
            r"of family 'videocrafter' \(it looks like LVDM text-to-video: lvdm_t2v",
        ),
        ("videocrafter1_i2v_512", "lvdm_t2v_256", r"of family 'lvdm' \(it looks like VideoCrafter 1 image-to-video"),
        ("videocrafter1_i2v_512", "videocrafter2_t2v_512", "has image_encoder, image_resampler beyond its config"),
        ("videocrafter2_t2v_512", "videocrafter1_i2v_512", "lacks image_encoder, image_resampler and has nothing"),
    ],
)
def test_a_checkpoint_of_another_model_is_named_in_one_sentence(published, tmp_path, model, config_of, message):
    source, _ = published(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_checkpoint(source, tmp_path / "folder", tiny_checkpoint(config_of)[1])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "folder").exists()


def test_entries_that_do_not_fit_are_listed_with_the_likely_family(published, tmp_path):
    source, _ = published("videocrafter2_t2v_512")
    config = tiny_checkpoint("videocrafter1_t2v_512")[1]
    with pytest.raises(
        CheckpointError, match=r"looks like VideoCrafter 2 text-to-video: videocrafter2_t2v_512\)"
    ) as caught:
        convert_checkpoint(source, tmp_path / "folder", config)
    assert "unexpected:\n    fps_embedding.*.weight (2)" in str(caught.value)
    assert "temporal_conv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_a_model_of_an_unknown_family_asks_for_its_config(published):
    source, _ = published(
        "videocrafter1_t2v_512", lambda state: {k: v for k, v in state.items() if "init_attn" not in k}
    )
    with pytest.raises(CheckpointError, match="of no family known here"):
        family_of(source)


def test_an_existing_folder_is_never_touched(published, tmp_path):
    source, config = published("lvdm_t2v_256")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        convert_checkpoint(source, tmp_path / "folder", config)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["precious"]


def test_a_folder_saved_from_a_pipeline_loads_again(published, tmp_path):
    source, config = published("videocrafter1_i2v_512")
    convert_checkpoint(source, tmp_path / "first", config)
    pipe = load_pipeline(tmp_path / "first")
    save_pipeline(pipe.components, pipe.config, tmp_path / "second")
    again = load_pipeline(tmp_path / "second")
    for part, module in pipe.components.modules().items():
        other = again.components.modules()[part].state_dict()
        assert all(torch.equal(other[name], tensor) for name, tensor in module.state_dict().items())
    pipe.components.text = None
    with pytest.raises(CheckpointError, match="needs all parts; missing: text_encoder"):
        save_pipeline(pipe.components, config, tmp_path / "third")


def test_broken_model_folders_say_what_is_wrong(published, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no model folder .*nowhere"):
        load_pipeline(tmp_path / "nowhere")
    source, config = published("lvdm_t2v_256")
    convert_checkpoint(source, tmp_path / "folder", config)
    weights = tmp_path / "folder" / "text_encoder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"text_encoder\.safetensors is damaged"):
        load_pipeline(tmp_path / "folder")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"is incomplete: text_encoder\.safetensors is missing"):
        load_pipeline(tmp_path / "folder")


@pytest.fixture
def yaml_file(tmp_path):
    """A function that writes a mapping as YAML and gives its path."""

    def write(content):
        (tmp_path / "published.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "published.yaml"

    return write


@pytest.mark.parametrize("model", [*FIGURES, "videocrafter1_t2v_1024"])
def test_published_configs_mean_ours(yaml_file, model):
    ours = model_config(model)
    found = read_published_config(yaml_file(published_yaml(model)))
    assert found == ours


def test_a_published_shift_changes_its_sign(yaml_file):
    content = published_yaml("lvdm_t2v_256")
    content["model"]["params"]["shift_factor"] = 0.58
    assert read_published_config(yaml_file(content)).latents.shift == -0.58


def _set(*path_and_value):
    *path, name, value = path_and_value

    def change(content):
        place = content["model"]
        for step in path:
            place = place[step]
        place[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("target", "ldm.models.Other"), "model has the target 'ldm.models.Other', which is not supported: choose"),
        (
            _set("params", "unet_config", "target", "x.UNet"),
            "unet_config has the target 'x.UNet', which is not supported",
        ),
        (
            _set("params", "first_stage_config", "target", "lvdm.models.autoencoder3d.AutoencoderKL"),
            "first_stage_config has the target 'lvdm.models.autoencoder3d.AutoencoderKL'",
        ),
        (
            _set("params", "cond_stage_config", "__is_unconditional__"),
            "section 'cond_stage_config' must have a 'target'",
        ),
        (_set("params", "parameterization", "x0"), "only parameterization = 'eps' is supported, got 'x0'"),
        (_set("params", "scale_by_std", True), "only scale_by_std = False is supported"),
        (_set("params", "noise_strength", 0.1), "has a parameter 'noise_strength' that is not understood"),
        (_set("params", "finegrained", False), "only finegrained = true"),
        (_set("params", {}), "lacks the parameter 'unet_config'"),
    ],
)
def test_what_is_not_understood_in_a_published_config_is_one_sentence(yaml_file, change, message):
    content = published_yaml("videocrafter1_i2v_512")
    change(content)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")) as caught:
        read_published_config(yaml_file(content))
    assert "\n" not in str(caught.value)
    assert "published.yaml" in str(caught.value)


def test_a_file_of_another_form_is_no_published_config(yaml_file, tmp_path):
    with pytest.raises(ConfigError, match="is no published config"):
        read_published_config(yaml_file({"family": "lvdm"}))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        (tmp_path / "bad.yaml").write_text("a: [")
        read_published_config(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_published_config(tmp_path / "absent.yaml")


def run_convert(*arguments):
    """Run `aicl convert` in this process; returns its exit code."""
    with pytest.raises(SystemExit) as caught:
        run_verb("convert", list(map(str, arguments)))
    return caught.value.code


def test_the_script_converts_with_a_published_yaml_as_it_is(published, yaml_file, tmp_path, monkeypatch, capsys):
    source, config = published("videocrafter2_t2v_512")
    content = published_yaml("videocrafter2_t2v_512")
    params = content["model"]["params"]
    params["unet_config"]["params"] = config.unet
    params["first_stage_config"]["params"]["ddconfig"] = config.autoencoder.ddconfig
    # The tiny text encoder has no published name, so the published one is made to mean it.
    tiny = {"lvdm.modules.encoders.condition.FrozenOpenCLIPEmbedder": lambda: replace(config.text)}
    monkeypatch.setattr("lvdm.checkpoints.published.TEXT_ENCODERS", tiny)
    assert run_convert(source, tmp_path / "out", "--config", yaml_file(content), "--dtype", "float16") == 0
    assert "load it with" in capsys.readouterr().out
    assert load_pipeline(tmp_path / "out").components.unet.dtype == torch.float16


def test_the_script_ends_in_one_sentence_on_bad_input(published, tmp_path, capsys):
    source, _ = published("lvdm_t2v_256")
    assert run_convert(source, tmp_path / "out", "--family", "videocrafter2_t2v_512") == 2
    assert "looks like LVDM text-to-video" in capsys.readouterr().err
    source.write_text("<html>")
    assert run_convert(source, tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1

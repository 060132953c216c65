"""Weights as trainers and other libraries leave them: wrappers' names, averages alone, DeepSpeed, diffusers."""

import json

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import save_file

from lvdm.checkpoints import convert_checkpoint, convert_unet, family_of, load_pipeline, read_checkpoint
from lvdm.checkpoints.diffusers_layout import is_diffusers, to_published
from lvdm.checkpoints.folder import read_part
from lvdm.checkpoints.unet_layouts import published_names
from lvdm.errors import CheckpointError
from lvdm.models.backbone import build_backbone
from tests.lvdm.published import FIGURES, model_config, tiny_checkpoint
from tests.parity.rebuild import full_layouts

STATE = {"model.diffusion_model.out.2.bias": torch.arange(3.0), "first_stage_model.a": torch.ones(2)}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_forward_module._orig_mod.{name}",
        lambda name: name.replace("diffusion_model.", "diffusion_model._orig_mod."),
        lambda name: name.replace("diffusion_model.", "diffusion_model.module."),
        lambda name: name.replace("model.d", "model.module.d"),
    ],
)
def test_what_wrappers_leave_in_names_is_removed(tmp_path, rename):
    torch.save({"state_dict": {rename(name): value for name, value in STATE.items()}}, tmp_path / "model.ckpt")
    found = read_checkpoint(tmp_path / "model.ckpt")
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)
    torch.save(STATE | {rename("model.diffusion_model.out.2.bias"): torch.ones(1)}, tmp_path / "twice.ckpt")
    with pytest.raises(CheckpointError, match="twice, with and without"):
        read_checkpoint(tmp_path / "twice.ckpt")


@pytest.mark.parametrize("model", FIGURES)
def test_published_names_are_told_from_ours(model):
    state, config = tiny_checkpoint(model)
    published = {name for name in state if name.startswith("model.diffusion_model.")}
    assert published <= set(published_names(config.family, convert_unet(config.family, state)))


@pytest.mark.parametrize("model", full_layouts())
def test_no_two_full_size_names_are_the_same_without_dots(model):
    names = published_names(model_config(model).family, convert_unet(model_config(model).family, {
        name: torch.empty(shape, device="meta") for name, shape in full_layouts()[model].items()
    }))  # fmt: skip
    assert len({name.replace(".", "") for name in names}) == len(set(names))


def test_a_file_of_averages_alone(tmp_path):
    state, config = tiny_checkpoint("videocrafter2_t2v_512")
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", "") if name.startswith("model.") else name: value
        for name, value in state.items()
    }
    torch.save({"state_dict": averages | {"model_ema.decay": torch.tensor(0.9)}}, tmp_path / "ema.ckpt")
    convert_checkpoint(tmp_path / "ema.ckpt", tmp_path / "folder", config)
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    convert_checkpoint(tmp_path / "model.ckpt", tmp_path / "expected", config)
    ours, expected = read_part(tmp_path / "folder", "unet"), read_part(tmp_path / "expected", "unet")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    with pytest.raises(CheckpointError, match="only moving averages: say of which model"):
        family_of(tmp_path / "ema.ckpt")
    _, other = tiny_checkpoint("lvdm_t2v_256")
    with pytest.raises(CheckpointError, match="averages entries that the model does not have"):
        convert_checkpoint(tmp_path / "ema.ckpt", tmp_path / "other", other)


# -- DeepSpeed ------------------------------------------------------------------------------------------------------


def deepspeed_folder(folder, weights, ranks=2):
    """What stage 2 writes: the module in half precision, and each rank's part of the float32 weights, padded."""
    place = folder / "global_step7"
    place.mkdir(parents=True)
    (folder / "latest").write_text("global_step7")
    shapes = [{name: value.shape for name, value in weights.items()}]
    module = {f"module.{name}": value.bfloat16() for name, value in weights.items()} | {"module.buffer": torch.ones(2)}
    shapes = [{f"module.{name}": shape for name, shape in shapes[0].items()}]
    torch.save({"module": module, "param_shapes": shapes, "ds_version": "0.18"}, place / "mp_rank_00_model_states.pt")
    flat = torch.cat([value.flatten() for value in weights.values()])
    flat = torch.cat([flat, torch.zeros(-len(flat) % ranks)])
    for rank, part in enumerate(flat.chunk(ranks)):
        state = {"zero_stage": 2, "partition_count": [ranks], "single_partition_of_fp32_groups": [part]}
        torch.save({"optimizer_state_dict": state}, place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return place


@pytest.mark.parametrize("ranks", [1, 3, 11])
def test_a_folder_of_deepspeed_gives_float32(tmp_path, ranks):
    weights = {f"model.diffusion_model.{i}.weight": torch.randn(3, i + 1) for i in range(5)}
    place = deepspeed_folder(tmp_path / "run", weights, ranks)
    for folder in (tmp_path / "run", place):
        found = read_checkpoint(folder)
        assert found.keys() == weights.keys() | {"buffer"}
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    for path in place.glob("*_optim_states.pt"):
        path.unlink()
    found = read_checkpoint(tmp_path / "run")
    assert all(torch.equal(found[name], weights[name].bfloat16()) for name in weights)


def test_incomplete_folders_of_deepspeed(tmp_path):
    weights = {f"{i}.weight": torch.randn(3, i + 1) for i in range(5)}
    place = deepspeed_folder(tmp_path / "run", weights, 3)
    (place / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="is incomplete"):
        read_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "latest").write_text("../elsewhere")
    with pytest.raises(CheckpointError, match="does not name a folder"):
        read_checkpoint(tmp_path / "run")
    stage3 = tmp_path / "stage3"
    stage3.mkdir()
    (stage3 / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(CheckpointError, match=r"stage 3.*zero_to_fp32\.py"):
        read_checkpoint(stage3)


# -- diffusers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unets():
    """diffusers' video UNet with the shape of VideoCrafter 2's, in small, and ours of the same parameters."""
    torch.manual_seed(0)
    theirs = UNet3DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():  # layers that start at zero would hide what they do
        parameter.data = torch.randn_like(parameter) * 0.1
    ours = {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2],
        "attention_resolutions": [1], "num_head_channels": 8, "context_dim": 24, "temporal_length": 4,
        "temporal_conv": True, "use_relative_position": False, "addition_attention": True,
    }  # fmt: skip
    return theirs, ours


def test_a_unet_in_diffusers_layout_gives_diffusers_numbers(unets):
    theirs, params = unets
    assert is_diffusers(theirs.state_dict())
    ours = build_backbone("videocrafter", params)
    ours.load_state_dict(convert_unet("videocrafter", to_published(theirs.state_dict())), strict=True)
    x, context, timesteps = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 7, 24), torch.tensor([5, 700])
    with torch.no_grad():
        expected = theirs(x, timesteps, context).sample
        found = ours.eval()(x, timesteps, context)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_unet_published_alone_is_joined_with_the_rest_of_a_folder(tmp_path, unets):
    state, config = tiny_checkpoint("videocrafter2_t2v_512")
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    convert_checkpoint(tmp_path / "model.ckpt", tmp_path / "base", config)
    theirs, params = unets
    config.unet = params
    unet = tmp_path / "pipeline" / "unet"
    unet.mkdir(parents=True)
    (unet / "config.json").write_text("{}")
    entries = theirs.state_dict()
    names = sorted(entries)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: entries[name] for name in part}, unet / f"diffusion_pytorch_model-{number}.safetensors")
    places = {name: f"diffusion_pytorch_model-{1 + i % 2}.safetensors" for i, name in enumerate(names)}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="lacks autoencoder, text_encoder"):
        convert_checkpoint(tmp_path / "pipeline", tmp_path / "new", config)
    convert_checkpoint(tmp_path / "pipeline", tmp_path / "new", config, rest=tmp_path / "base")
    assert family_of(tmp_path / "pipeline").config == "videocrafter2_t2v_512"
    pipe = load_pipeline(tmp_path / "new")
    published = convert_unet("videocrafter", to_published(entries))
    assert all(torch.equal(value, published[name]) for name, value in pipe.components.unet.state_dict().items())
    config.text.layers += 1
    with pytest.raises(CheckpointError, match="has another text than the config"):
        convert_checkpoint(tmp_path / "pipeline", tmp_path / "third", config, rest=tmp_path / "base")

import pytest
import torch

from lvdm.checkpoints import convert_unet
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models import build_backbone
from tests.aicl.tiny_models import SMALLEST
from tests.parity import rebuild

SHARED = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": 1,
    "use_checkpoint": True,
    "temporal_length": 16,
}
LVDM = SHARED | {
    "image_size": 32,
    "num_heads": 8,
    "context_dim": 768,
    "legacy": False,
    "kernel_size_t": 1,
    "padding_t": 0,
    "use_temporal_transformer": True,
    "use_relative_position": True,
}
VIDEOCRAFTER = SHARED | {
    "num_head_channels": 64,
    "context_dim": 1024,
    "use_linear": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_causal_attention": False,
    "addition_attention": True,
}
VIDEOCRAFTER1 = VIDEOCRAFTER | {"temporal_conv": False, "use_relative_position": True}
VIDEOCRAFTER2 = VIDEOCRAFTER | {"temporal_conv": True, "use_relative_position": False, "fps_cond": True}
PUBLISHED = {
    "lvdm_t2v_256": ("lvdm", LVDM),
    "videocrafter1_t2v_512": ("videocrafter", VIDEOCRAFTER1),
    "videocrafter2_t2v_512": ("videocrafter", VIDEOCRAFTER2),
    "videocrafter1_i2v_512": ("videocrafter", VIDEOCRAFTER2 | {"use_image_attention": True}),
}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def published(name):
    return {key: torch.empty(shape, device="meta") for key, shape in rebuild.full_layouts()[name].items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_layouts_are_ours_entry_by_entry(name):
    family, params = PUBLISHED[name]
    with torch.device("meta"):
        unet = build_backbone(family, params)
    assert shapes(convert_unet(family, published(name))) == shapes(unet.state_dict())


def tiny(name):
    parameters, _ = rebuild.figure(name)
    return parameters["family"], rebuild.weights_for(parameters["state_dict"])


def test_prefix_and_other_parts_are_dropped():
    family, state = tiny("lvdm_t2v_tiny")
    whole = {f"model.diffusion_model.{key}": value for key, value in state.items()}
    whole |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(1), "betas": torch.zeros(1)}
    bare, prefixed = convert_unet(family, state), convert_unet(family, whole)
    assert bare.keys() == prefixed.keys()
    assert all(bare[key].equal(prefixed[key]) for key in bare)


def test_nothing_is_copied():
    family, state = tiny("videocrafter2_t2v_tiny")
    before = sorted(tensor.data_ptr() for tensor in state.values())
    assert sorted(tensor.data_ptr() for tensor in convert_unet(family, state).values()) == before


@pytest.mark.parametrize(
    "name, other", [("lvdm_t2v_tiny", "videocrafter"), ("videocrafter1_t2v_tiny", "lvdm")], ids=["lvdm", "videocrafter"]
)
def test_wrong_family(name, other):
    family, state = tiny(name)
    with pytest.raises(CheckpointError, match=f"seems to hold a {family} UNet, not a {other} one"):
        convert_unet(other, state)


def test_no_unet_and_unknown_family():
    with pytest.raises(CheckpointError, match="holds no UNet"):
        convert_unet("lvdm", {"first_stage_model.encoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"'lvmd'.*lvdm, videocrafter"):
        convert_unet("lvmd", {})


def test_a_missing_or_foreign_entry_is_not_loaded():
    parameters, _ = rebuild.figure("lvdm_t2v_tiny")
    family, state = tiny("lvdm_t2v_tiny")
    unet = build_backbone(family, parameters["unet"])
    missing = dict(state)
    missing.pop("out.2.bias")
    for wrong in (missing, state | {"out.3.weight": torch.zeros(1)}):
        with pytest.raises(RuntimeError, match=r"out\.[23]"):
            unet.load_state_dict(convert_unet(family, wrong), strict=True)


TINY = SMALLEST | {"attention_resolutions": [2], "num_heads": 2, "temporal_length": 4}

# Shapes in published files, of entries whose form depends on an option: (family, params, {published entry: shape}).
KERNELS = {
    "1x1 convolutions": (
        "videocrafter",
        {"context_dim": 8, "use_linear": False},
        {
            "input_blocks.3.1.proj_in.weight": (64, 64, 1, 1),
            "input_blocks.3.2.proj_in.weight": (64, 64, 1),
            "input_blocks.3.0.skip_connection.weight": (64, 32, 1, 1),
        },
    ),
    "spatially aware temporal convolutions": (
        "videocrafter",
        {"context_dim": 8, "temporal_conv": True, "tempspatial_aware": True},
        {
            "middle_block.0.temopral_conv.conv2.3.weight": (64, 64, 3, 3, 3),
            "middle_block.0.temopral_conv.conv3.3.weight": (64, 64, 3, 1, 1),
        },
    ),
    "kernels that see three frames": (
        "lvdm",
        {"context_dim": 8, "kernel_size_t": 3, "padding_t": 1},
        {
            "input_blocks.2.0.op.weight": (32, 32, 3, 3, 3),
            "input_blocks.3.0.skip_connection.weight": (64, 32, 1, 1, 1),
            "out.2.weight": (4, 32, 3, 3, 3),
        },
    ),
    "attention without context": (
        "lvdm",
        {"use_temporal_transformer": False, "use_relative_position": True, "num_classes": 5},
        {
            "middle_block.1.qkv_t.weight": (192, 64, 1),
            "middle_block.1.proj_out_s.weight": (64, 64, 1),
            "middle_block.1.relative_position_v.embeddings_table": (9, 32),
            "label_emb.weight": (5, 128),
        },
    ),
    "resampling residual blocks": (
        "videocrafter",
        {"context_dim": 8, "resblock_updown": True, "use_scale_shift_norm": True},
        {"output_blocks.1.3.out_layers.3.weight": (64, 64, 3, 3), "input_blocks.2.0.emb_layers.1.weight": (64, 128)},
    ),
}


@pytest.mark.parametrize("case", KERNELS)
def test_entries_whose_shape_depends_on_an_option(case):
    family, params, layout = KERNELS[case]
    expected = shapes(build_backbone(family, TINY | params).state_dict())
    marker = torch.zeros(32, 4, 1, 3, 3) if family == "lvdm" else torch.zeros(32, 4, 3, 3)
    entries = {name: torch.zeros(shape) for name, shape in layout.items()}
    converted = convert_unet(family, {"input_blocks.0.0.weight": marker} | entries)
    converted.pop("input_blocks.0.0.weight")
    assert {name: expected.get(name) for name in converted} == shapes(converted)

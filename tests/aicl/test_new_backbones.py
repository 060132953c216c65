"""What it takes to bring in another backbone: three files for a UNet of the same kind, one class for a transformer."""

from collections.abc import Sequence

import pytest
import torch
from einops import rearrange
from torch import nn

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.action_integration import IntegrationConfig
from aicl.action_prism import ActionPrism, PrismConfig
from aicl.adapter import load_adapter, save_adapter
from aicl.integrated_backbone import integrate
from lvdm import config as configs
from lvdm.checkpoints import convert_checkpoint, detect_family, family_of, load_pipeline, read_model
from lvdm.checkpoints.families import FAMILIES, LAYOUTS, Family, UNetLayout, first_kernel, has
from lvdm.checkpoints.unet_layouts import SHARED_NAMES
from lvdm.config import from_mapping
from lvdm.errors import ConfigError
from lvdm.models.backbone import (
    BACKBONES,
    Compression,
    ExtensibleBlock,
    TokenLayout,
    VideoBackbone,
    build_backbone,
)
from lvdm.models.resblocks import ResBlock
from lvdm.models.transformers import SpatialBlock, TemporalBlock, Transformer
from lvdm.models.unet_base import UNetParams, VideoUNet
from lvdm.training import train
from tests.aicl.test_training import PRISM
from tests.aicl.tiny_models import SMALLEST, randomise
from tests.lvdm.published import tiny_checkpoint
from tests.lvdm.training_runs import losses, make_clips, tiny_config

# -- a UNet of the same kind: lvdm/models/unet_woven.py, lvdm/checkpoints/family_woven.py, configs/models/woven.yaml --


class WovenUNet(VideoUNet):
    """Spatial and temporal blocks in turn inside one transformer, without relative positions."""

    family = "woven"
    extensible_block = TemporalBlock
    _rows = 2

    def forward(self, x, timesteps, context, fps=None):
        return self._run(x, self._embed(timesteps, self.time_embed), context)

    def _resblock(self, channels, out_channels, resample=None):
        return ResBlock(channels, out_channels, self.emb_channels, rows=self._rows, resample=resample)

    def _attention(self, channels):
        heads, head_dim = self.params.heads(channels)
        sizes = (heads * head_dim, heads, head_dim)
        blocks = [SpatialBlock(*sizes, self.params.context_dim, False), TemporalBlock(*sizes, None, None, False)]
        return [Transformer(channels, sizes[0], blocks, rows=2, use_checkpoint=self.params.use_checkpoint)]

    def _max_frames(self):
        return None


def build_woven(params):
    return WovenUNet(from_mapping(UNetParams, params, "unet"))


MODEL = Family(
    "woven_t2v", "woven", "Woven text-to-video", lambda entries: first_kernel(entries) == 4 and has(entries, ".woven.")
)
NAMES = {"transformer.woven": "blocks"} | SHARED_NAMES
LAYOUT = UNetLayout(
    NAMES, lambda entries: first_kernel(entries) == 4, target="woven.UNet", guidance_scale=9.0, save_fps=8
)
UNET = SMALLEST | {"num_head_channels": 16, "context_dim": 24}


@pytest.fixture
def woven(tmp_path):
    """What the three files would do: two registrations, and a config; gives the config's path."""
    BACKBONES.register("woven")(build_woven)
    FAMILIES.register(MODEL.config)(MODEL)
    LAYOUTS.register("woven")(LAYOUT)
    config = configs.to_mapping(tiny_checkpoint("videocrafter1_t2v_512")[1]) | {"family": "woven", "unet": UNET}
    config["defaults"]["fps"] = None
    configs.save(tmp_path / "woven.yaml", config)
    yield tmp_path / "woven.yaml"
    for registry, name in ((BACKBONES, "woven"), (FAMILIES, MODEL.config), (LAYOUTS, "woven")):
        registry.remove(name)


@pytest.fixture
def published(woven, tmp_path):
    """A published file of the new UNet, beside the usual text encoder and autoencoder, and the UNet's own entries."""
    unet = build_backbone("woven", UNET)
    randomise(unet, seed=0)
    state = {
        name: x for name, x in tiny_checkpoint("videocrafter1_t2v_512")[0].items() if "diffusion_model" not in name
    }
    for name, tensor in unet.state_dict().items():
        name = f".{name}"
        for theirs, ours in NAMES.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        state[f"model.diffusion_model{name}"] = tensor.clone()
    torch.save({"state_dict": state}, tmp_path / "woven.ckpt")
    return tmp_path / "woven.ckpt", unet


def test_a_unet_of_the_same_kind_is_told_converted_loaded_and_generates(published, woven, tmp_path):
    source, unet = published
    assert family_of(source) is MODEL
    convert_checkpoint(source, tmp_path / "folder", read_model(str(woven)))
    pipe = load_pipeline(tmp_path / "folder")
    assert type(pipe.components.unet) is WovenUNet
    loaded = pipe.components.unet.state_dict()
    assert loaded.keys() == unet.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in unet.state_dict().items())
    assert pipe("a person jumps", progress=False).shape == (1, 4, 16, 16, 3)
    assert detect_family(tiny_checkpoint("videocrafter1_t2v_512")[0]).config == "videocrafter1_t2v_512"


def test_a_unet_of_the_same_kind_trains_with_aicl_and_its_adapter_loads(published, woven, tmp_path):
    convert_checkpoint(published[0], tmp_path / "base", read_model(str(woven)))
    make_clips(tmp_path / "clips")
    sections = {"base": {"path": str(tmp_path / "base")}, "prism": PRISM, "integration": {"head_dim": 16}}
    assert train(tiny_config(tmp_path, "aicl", **sections)) == 0
    run = tmp_path / "runs/aicl"
    assert losses(run).keys() == {1, 2, 3, 4}
    unet = load_pipeline(tmp_path / "base").components.unet
    _, integrated, info = load_adapter(run / "checkpoints/step_00000004/adapter.safetensors", unet)
    assert (info.family, info.layout) == ("woven", integrated.layout)
    assert {name.rpartition(".")[2] for name in info.layout} == {"1"}  # of two blocks each, the temporal one


def test_a_family_that_nobody_registered_is_named(tmp_path):
    config = configs.to_mapping(tiny_checkpoint("videocrafter1_t2v_512")[1]) | {"family": "woven"}
    with pytest.raises(ConfigError, match=r"unknown backbone family 'woven': choose from .*lvdm, videocrafter"):
        read_model(config)


def test_a_name_is_given_once():
    BACKBONES.register("twice")(build_woven)
    with pytest.raises(ValueError, match="backbone family 'twice'"):
        BACKBONES.register("twice")(build_woven)
    BACKBONES.remove("twice")


# -- a video transformer: another order of tokens, patches, compression in time, outputs in a tuple -----------------


class Block(nn.Module):
    def __init__(self, width: int, item: int | None) -> None:
        super().__init__()
        self.item = item
        self.layer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())

    def forward(self, tokens, text):
        tokens = tokens + self.layer(tokens)
        return tokens if self.item is None else (text, tokens)


class TinyTransformer(VideoBackbone):
    """Patches of 1x2x2 latent cells; its blocks take their tokens in any order."""

    family, latent_channels, width = "tiny_transformer", 16, 32
    prediction = "v"

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__()
        self.layout = layout
        self.patches, self.text = nn.Linear(4 * 16, self.width), nn.Linear(12, self.width)
        self.blocks = nn.ModuleList(Block(self.width, layout.item) for _ in range(2))
        self.out = nn.Linear(self.width, 4 * 16)

    def forward(self, x, timesteps, context, fps=None):
        grid = (_, h, w) = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
        tokens = self.patches(rearrange(x, "b c t (h p) (w q) -> b t (h w) (c p q)", p=2, q=2))
        text = self.text(context)
        tokens = tokens + text.mean(1)[:, None, None] + timesteps[:, None, None, None] / 1000
        tokens = rearrange(tokens, f"b t (h w) c -> {self.layout.axes}", h=h, w=w)
        for block in self.blocks:
            output = block(tokens, text)
            tokens = output if self.layout.item is None else output[self.layout.item]
        tokens = TokenLayout(self.layout.axes).read(tokens, grid)
        return rearrange(self.out(tokens), "b t (h w) (c p q) -> b c t (h p) (w q)", h=h, w=w, p=2, q=2)

    def extensible_blocks(self) -> Sequence[ExtensibleBlock]:
        return [
            ExtensibleBlock(f"blocks.{i}", block, self.width, (1, 2, 2), self.layout)
            for i, block in enumerate(self.blocks)
        ]

    def check_input(self, shape):
        if shape[3] % 2 or shape[4] % 2:
            raise ConfigError(f"latent size {shape[3]}x{shape[4]} must be a multiple of the patch of 2")

    def enable_gradient_checkpointing(self):
        raise ConfigError("this model cannot recompute its activations")


LAYOUTS_OF_TOKENS = [
    TokenLayout("b t (h w) c"),
    TokenLayout("(b t) (h w) c"),
    TokenLayout("(b h w) t c"),
    TokenLayout("b (t h w) c"),
    TokenLayout("b (t h w) c", item=1),
]


def transformer(layout: TokenLayout, trained: bool = True):
    integrated = integrate(TinyTransformer(layout), IntegrationConfig(feature_channels=6, head_dim=8))
    randomise(integrated.backbone, seed=0)
    if trained:
        randomise(integrated.blocks, seed=1)
    return integrated


def latents(b: int = 2):
    generator = torch.Generator().manual_seed(0)
    shape = TinyTransformer(TokenLayout()).latent_shape(17, (48, 32), Compression(space=8, time=4))
    return (
        torch.randn(b, *shape, generator=generator),
        torch.arange(b) * 300,
        torch.randn(b, 5, 12, generator=generator),
    )


def features(b: int = 2):
    return torch.randn(b, 10, 6, 6, 4, generator=torch.Generator().manual_seed(2))


def test_latents_of_causal_autoencoders():
    backbone = TinyTransformer(TokenLayout())
    compression = Compression(space=8, time=4)
    assert backbone.latent_shape(1, (16, 16), compression) == (16, 1, 2, 2)
    assert backbone.latent_shape(49, (32, 48), compression) == (16, 13, 4, 6)
    with pytest.raises(ConfigError, match="48 frames do not fit: this model takes 1 more than a multiple of 4"):
        backbone.latent_shape(48, (32, 48), compression)
    with pytest.raises(ConfigError, match="size 32x44"):
        backbone.latent_shape(49, (32, 44), compression)
    with pytest.raises(ConfigError, match="latent size 4x3 must be a multiple of the patch"):
        backbone.latent_shape(49, (32, 24), compression)


@pytest.mark.parametrize("layout", LAYOUTS_OF_TOKENS, ids=lambda layout: f"{layout.axes}, item {layout.item}")
def test_every_order_of_tokens_reads_the_same(layout):
    plain, integrated = transformer(LAYOUTS_OF_TOKENS[0]), transformer(layout)
    inputs, context = latents(), plain.reference_context(features(), 5, weights=[1, 2])
    expected = plain(*inputs, references=context)
    torch.testing.assert_close(integrated(*inputs, references=context), expected)
    base = integrated(*inputs)
    assert not torch.allclose(base, expected, atol=1e-2)
    half = integrated.reference_context(features()[1:], 5, weights=[1, 2])
    some = integrated(*inputs, references=[(slice(1, 2), half)])
    torch.testing.assert_close(some, torch.cat([base[:1], expected[1:]]))


@pytest.mark.parametrize("layout", LAYOUTS_OF_TOKENS, ids=lambda layout: f"{layout.axes}, item {layout.item}")
def test_untrained_it_is_the_base_and_gradients_reach_every_new_parameter(layout):
    integrated, inputs = transformer(layout, trained=False), latents()
    base = integrated(*inputs)
    optimiser = torch.optim.SGD(integrated.blocks.parameters(), lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        out = integrated(*inputs, references=integrated.reference_context(features(), 5))
        assert torch.equal(out, base) == (step == 0)
        out.square().mean().backward()
        optimiser.step()
    assert [name for name, p in integrated.blocks.named_parameters() if p.grad is None or not p.grad.any()] == []
    unpatched = integrated.unpatch()
    assert torch.equal(unpatched(*inputs), base)


def test_a_token_reads_r_at_its_own_place_and_at_no_other():
    integrated, inputs, r = transformer(TokenLayout("b (t h w) c")), latents(), features()
    moved = r.clone()
    moved[:, :, :, 2:4, 2:4] += 1  # of the patch in the second row and the second column
    one, other = (integrated(*inputs, references=integrated.reference_context(x, 5)) for x in (r, moved))
    changed = (one - other).abs().amax((0, 1, 2)) > 1e-6
    assert changed.nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_an_adapter_of_a_transformer_is_written_and_read(tmp_path):
    layout = TokenLayout("b (t h w) c", item=1)
    prism = ActionPrism(PrismConfig(context_dim=12, in_channels=16, out_channels=6, depth=1, **SMALL))
    integrated = transformer(layout)
    save_adapter(tmp_path / "adapter.safetensors", prism, integrated)
    base = TinyTransformer(layout)
    base.load_state_dict(integrated.backbone.state_dict())
    loaded, patched, info = load_adapter(tmp_path / "adapter.safetensors", base)
    assert info.layout == {"blocks.0": 32, "blocks.1": 32} and patched.prediction == "v"
    clips, captions = torch.randn(2, 1, 16, 5, 6, 4), torch.randn(2, 1, 5, 12)
    contexts = [
        each.reference_context(reads(clips, captions), 5) for each, reads in ((integrated, prism), (patched, loaded))
    ]
    inputs = latents()
    assert torch.equal(patched(*inputs, references=contexts[1]), integrated(*inputs, references=contexts[0]))


SMALL = {"width": 16, "heads": 2, "head_dim": 8, "text_width": 16}

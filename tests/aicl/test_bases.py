"""AICL on base models of diffusers: every class of the table, tiny and with random weights."""

from typing import Any

import numpy as np
import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.action_embeddings import Embedder
from aicl.action_integration import IntegrationConfig
from aicl.action_prism import build_prism
from aicl.adapter import load_adapter, save_adapter
from aicl.base_defaults import read_integration_config, read_prism_config
from aicl.base_tables import row
from aicl.integrated_backbone import integrate
from aicl.options import Reference
from aicl.pipeline import AICLPipeline
from lvdm import config as configs
from lvdm.bases.backbone import DiffusersBackbone
from lvdm.bases.kinds import KINDS
from lvdm.bases.loading import wrap
from lvdm.bases.sizes import PUBLISHED
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.backbone import Compression, build_backbone
from lvdm.training import train
from lvdm.training.tasks import config_schema
from tests.aicl.tiny_models import randomise
from tests.lvdm.test_bases import image
from tests.lvdm.tiny_bases import NAMES, SIZES, WIDTH, network, pipeline
from tests.lvdm.training_runs import MODEL, ROOT, losses, make_clips, tiny_config

SMALL = {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "text_width": 16}
BLOCKS = {"inner_width": 16, "head_dim": 8}
SIZE = (2, 4, 4)  # latent frames, height, width


def inputs(backbone: DiffusersBackbone, b: int = 2, size: tuple[int, int, int] = SIZE) -> dict[str, Any]:
    """Arguments of a call of a backbone."""
    generator = torch.Generator().manual_seed(0)
    t, h, w = size
    given: dict[str, Any] = {
        "x": torch.randn(b, backbone.latent_channels, t, h, w, generator=generator),
        "timesteps": torch.arange(b) * 300 + 10.0,
        "context": torch.randn(b, 226 if "Cog" in backbone.family else 5, WIDTH, generator=generator),
        "fps": torch.full((b,), 8.0),
    }
    if backbone.image_channels:
        given["image_latents"] = torch.randn(b, backbone.image_channels, t, h, w, generator=generator)
    return given


def integrated(name: str) -> Any:
    backbone = DiffusersBackbone(network(name), Compression(8, 4), "flow")
    return integrate(backbone, IntegrationConfig(feature_channels=6, **BLOCKS))


def features(b: int = 2, references: int = 1) -> torch.Tensor:
    return torch.randn(b, 2 * references, 6, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", KINDS)
def test_an_untrained_adapter_is_the_base_and_gradients_reach_all_that_is_new_and_nothing_else(name):
    model = integrated(name)
    given = inputs(model.backbone)
    state = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    base = model(**given)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(2):
        optimiser.zero_grad()
        out = model(**given, references=model.reference_context(features(), 2))
        assert torch.equal(out, base) == (step == 0)
        out.square().mean().backward()
        optimiser.step()
    assert [key for key, p in model.blocks.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
    assert not torch.equal(model(**given, references=model.reference_context(features(), 2)), base)
    silent = model.reference_context(features(), 2, scale=0.0)
    assert torch.equal(model(**given, references=silent), base)
    unpatched = model.unpatch()
    assert all(parameter.requires_grad for parameter in unpatched.parameters())
    assert torch.equal(unpatched.requires_grad_(False)(**given), base)  # with gradients, convolutions round otherwise


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"UNet3DConditionModel"}))
def test_recomputed_blocks_have_the_same_gradients(name):
    gradients = []
    for recomputed in (False, True):
        model = integrated(name)
        randomise(model.blocks, seed=1)
        if recomputed:
            model.enable_gradient_checkpointing()
        given = inputs(model.backbone)
        model(**given, references=model.reference_context(features(), 2)).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.blocks.parameters()])
    for stored, again in zip(*gradients):
        torch.testing.assert_close(again, stored, rtol=1e-3, atol=1e-6)


def test_a_network_that_cannot_be_recomputed_says_so():
    with pytest.raises(ConfigError, match="cannot recompute a UNet3DConditionModel"):
        integrated("UNet3DConditionModel").enable_gradient_checkpointing()


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_references_changes_nothing_and_their_places_do(name):
    model = integrated(name)
    randomise(model.blocks, seed=1)
    given, shown = inputs(model.backbone), features(references=3)
    with torch.no_grad():
        one, other, shifted = (
            model(**given, references=model.reference_context(r, 2))
            for r in (shown, torch.cat([shown[:, 2:], shown[:, :2]], dim=1), shown.roll(1, dims=1))
        )
        some = model(**given, references=[(slice(1, 2), model.reference_context(shown[1:], 2))])
        base = model(**given)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert (one - shifted).abs().max() > 1e-4
    torch.testing.assert_close(some, torch.cat([base[:1], one[1:]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_tokens_lie_where_the_table_says(name):
    """The last block's output is moved at one token, as the table would write it. Behind it a transformer sees single
    tokens, so the prediction changes in that token's patch and nowhere else; a UNet has one more convolution over
    places, so it changes in that frame alone, and most beside that place."""
    backbone = DiffusersBackbone(network(name), Compression(8, 4), "flow")
    block, latents = backbone.extensible_blocks()[-1], (2, 8, 8)
    t, h, w = grid = block.grid(latents)
    given = inputs(backbone, b=1, size=latents)

    def move(module: Any, args: Any, output: Any) -> Any:
        tokens = block.layout.read(output, grid).clone()
        assert tokens.shape == (1, t, h * w, block.width)
        tokens[:, frame, row * w + column] += 3.0
        return block.layout.write(output, tokens, grid)

    with torch.no_grad():
        still = backbone(**given)
        for frame, row, column in [(0, 0, w - 2), (1, h - 1, 1), (1, 0, w - 1)]:
            handle = block.module.register_forward_hook(move)
            change = (backbone(**given) - still).abs().sum((0, 1))[None, None]  # (1, 1, t, h, w)
            handle.remove()
            change = torch.nn.functional.adaptive_avg_pool3d(change, grid)[0, 0]
            most = np.unravel_index(int(change.argmax()), grid)
            assert not change[1 - frame].any()
            if "Transformer3D" in name:
                assert most == (frame, row, column) and change.count_nonzero() == 1
            else:
                assert most[0] == frame and abs(most[1] - row) <= 1 and abs(most[2] - column) <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as people have them."""
    path = tmp_path_factory.mktemp("bases") / "wan"
    pipeline("WanPipeline").save_pretrained(path)
    return path


def references(count: int = 3) -> list[Reference]:
    generator = torch.Generator().manual_seed(3)
    return [
        Reference(torch.randint(0, 256, (5 + i, 20, 24, 3), dtype=torch.uint8, generator=generator), "a person jumps")
        for i in range(count)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_reads_references_and_without_them_is_the_base(name, tmp_path):
    base = wrap(pipeline(name))
    frames, (height, width) = SIZES[name]
    prism = build_prism(read_prism_config({**SMALL, "out_channels": 6}, base))
    blocks = integrate(base.components.unet, read_integration_config({**BLOCKS, "feature_channels": 6}, base))
    randomise(blocks.blocks, seed=1)
    pipe = AICLPipeline(base, prism, blocks)
    if hasattr(base.pipe, "encode_prompt"):
        texts = Embedder(pipe).texts(["a person jumps", "a red person walks"])
        assert np.allclose(np.linalg.norm(texts, axis=1), 1) and not np.allclose(texts[0], texts[1])
    else:
        with pytest.raises(ConfigError, match="reads no text"):
            Embedder(pipe).texts(["a person jumps"])
    options: dict[str, Any] = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": 2}
    options |= {"image": image(name), "progress": False, "output_type": "pixels"}
    plain = pipe.base("a person jumps", **options)
    assert torch.equal(pipe("a person jumps", **options), plain)
    assert torch.equal(pipe("a person jumps", references=references(), scale=0.0, **options), plain)
    shown = pipe("a person jumps", references=references(), **options)
    guided = pipe("a person jumps", references=references(), reference_guidance_scale=2.0, **options)
    assert shown.shape == (1, frames, height, width, 3)
    assert not torch.equal(shown, plain) and not torch.equal(guided, shown)
    first = pipe("a person jumps", references=references(), first_reference_until=1.0, **options)
    alone = pipe("a person jumps", references=references(1), **options)
    assert (first.int() - alone.int()).abs().max() <= 1  # the prism rounds otherwise for three references than for one
    save_adapter(tmp_path / "adapter.safetensors", prism, blocks)
    pipe.remove_adapter()
    assert torch.equal(pipe("a person jumps", **options), plain)
    assert pipe.load_adapter(tmp_path / "adapter.safetensors").family == base.components.unet.family
    assert torch.equal(pipe("a person jumps", references=references(), **options), shown)
    pipe.remove_adapter()


def test_a_folder_of_diffusers_trains_samples_and_keeps_its_adapter_apart(folder, tmp_path, caplog):
    make_clips(tmp_path / "clips")
    sections = {
        "base": {"path": str(folder), "text_on_cpu": True},
        "prism": SMALL,
        "integration": BLOCKS,
        "data": {"clip": {"num_frames": 5, "size": [16, 16], "fps": 8}},
        "training": {"steps": 20, "checkpoint_every": 20, "timesteps": "sqrt"},
    }
    assert train(tiny_config(tmp_path, "aicl", **sections)) == 0
    assert "--references VIDEO --size 16x16 --num-frames 5" in caplog.text  # not the base's 81 of 832x480
    assert len(losses(tmp_path / "runs/aicl")) == 20
    adapter = tmp_path / "runs/aicl/checkpoints/step_00000020/adapter.safetensors"
    pipe = AICLPipeline.from_pretrained(folder, adapter=adapter)
    assert (pipe.info.family, pipe.info.integration.feature_channels) == ("WanTransformer3DModel", 16)
    assert pipe.info.base["num_layers"] == 2 and pipe.info.prism.mask_padding
    options: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 1, "progress": False}
    shown = pipe("a person jumps", references=references(2), **options)
    pipe.save_pretrained(tmp_path / "whole")
    again = AICLPipeline.from_pretrained(tmp_path / "whole")
    assert torch.equal(again("a person jumps", references=references(2), **options), shown)
    other = DiffusersBackbone(network("WanTransformer3DModel", ffn_dim=64), Compression(8, 4), "flow")
    with pytest.raises(CheckpointError, match=r"ffn_dim.*32.*64"):
        load_adapter(adapter, other)
    cog = DiffusersBackbone(network("CogVideoXTransformer3DModel"), Compression(8, 4), "v")
    with pytest.raises(CheckpointError, match="family 'WanTransformer3DModel'"):
        load_adapter(adapter, cog)


def test_a_video_transformer_is_trained_from_scratch_and_aicl_on_it(tmp_path):
    make_clips(tmp_path / "clips")
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "ffn_dim": 32, "text_dim": 32}
    model = configs.load(MODEL) | {"family": "WanTransformer3DModel", "diffusion": {}}
    model["unet"] = {"in_channels": 4, "out_channels": 4, **small}
    model["diffusion"] = {"schedule": "flow", "prediction": "flow", "shift": 3.0, "spacing": "trailing"}
    given = {"data": {"clip": {"num_frames": 2, "size": [16, 16], "fps": 8}}, "training": {"steps": 2}}
    base = given | {"model": {"config": model, "train_text": True}}
    assert train(tiny_config(tmp_path, "base", **base)) == 0
    sections = given | {"base": {"path": str(tmp_path / "runs/base")}, "prism": SMALL, "integration": BLOCKS}
    assert train(tiny_config(tmp_path, "aicl", **sections)) == 0
    pipe = AICLPipeline.from_pretrained(tmp_path / "runs/base", adapter=tmp_path / "runs/aicl")
    assert pipe.info.family == "WanTransformer3DModel" and pipe.info.base["ffn_dim"] == 32
    options: dict[str, Any] = {"num_frames": 2, "height": 16, "width": 16, "num_inference_steps": 2, "progress": False}
    assert pipe("a person jumps", references=references(1), **options).shape == (1, 2, 16, 16, 3)
    with pytest.raises(
        ConfigError, match=r"unet\.ffn_dims is no parameter of WanTransformer3DModel: did you mean ffn_dim"
    ):
        build_backbone("WanTransformer3DModel", {"ffn_dims": 32})


@pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx", "hunyuanvideo", "mochi", "animatediff"])
def test_published_sizes_are_those_of_the_page_and_shipped_trainings_fit_them(name, monkeypatch):
    published = next(each for key, each in PUBLISHED.items() if key.startswith(name))
    backbone = published.build()
    clip = configs.load(ROOT / f"configs/diffusers/{name}.yaml", schema=config_schema())["data"]["clip"]
    backbone.latent_shape(clip["num_frames"], tuple(clip["size"]), published.compression)
    monkeypatch.setattr(type(published), "build", lambda self: backbone)
    line = row(published).removesuffix(" - | - |")  # of a UNet, whose memory takes seconds to count
    assert line in (ROOT / "docs/base_models.md").read_text(encoding="utf-8")
    assert float(line.split("= ")[1].split(" ")[0]) <= 100  # million parameters of an adapter

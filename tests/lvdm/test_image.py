"""The image condition: figures of the resampler, the visual tower against open_clip, the published preprocessing."""

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from lvdm.checkpoints.text_layouts import convert_image_encoder, convert_image_resampler
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.image import CLIP_MEAN, CLIP_STD, ImageConfig, ImageEncoder, ImageResampler
from tests.parity import rebuild

MODEL = "videocrafter1_i2v_512"
SMALL = ImageConfig(width=32, layers=3, heads=4, image_size=28, patch_size=7)
UNUSED = {"embedder.model.visual.proj", "embedder.model.visual.ln_post.weight", "embedder.model.visual.ln_post.bias"}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def small_clip() -> CLIP:
    """open_clip's own model, with random weights."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=3, width=32, head_width=8, patch_size=7, image_size=28)
    return CLIP(16, vision, CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=2)).eval()


@torch.no_grad()
def test_figures_of_the_published_resampler():
    parameters, expected = rebuild.figure("image_resampler_tiny")
    resampler = ImageResampler(**parameters["params"])
    weights = rebuild.weights_for(parameters["state_dict"])
    published = {f"image_proj_model.{key}": value for key, value in weights.items()}
    resampler.load_state_dict(convert_image_resampler(published), strict=True)
    y = resampler(rebuild.inputs("tokens", parameters["tokens"]))
    torch.testing.assert_close(y, torch.from_numpy(expected["y"]), rtol=0, atol=1e-4)


def test_full_size_layouts_are_the_published_ones():
    layout = rebuild.full_layouts()[MODEL]
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in layout.items()}
        encoder = ImageEncoder(ImageConfig.openclip_vit_h_14())
        resampler = ImageResampler(
            dim=1024, depth=4, dim_head=64, heads=12, num_queries=16, embedding_dim=1280, output_dim=1024, ff_mult=4
        )
    converted = convert_image_encoder(published)
    assert shapes(converted) == shapes(encoder.state_dict())
    used = {key for key in layout if key.startswith("embedder.")} - UNUSED
    assert {f"embedder.model.{key}" for key in converted} == used
    assert shapes(convert_image_resampler(published)) == shapes(resampler.state_dict())
    assert set(convert_image_resampler(published)) == {
        key.removeprefix("image_proj_model.") for key in layout if key.startswith("image_proj_model.")
    }


@torch.no_grad()
def test_tokens_are_what_leaves_the_last_block_of_open_clip():
    clip, encoder = small_clip(), ImageEncoder(SMALL).eval()
    encoder.load_state_dict(
        convert_image_encoder({f"embedder.model.{key}": value for key, value in clip.state_dict().items()}), strict=True
    )
    images = rebuild.inputs("frames", (2, 3, 40, 36))
    tokens = []
    hook = clip.visual.transformer.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    clip.encode_image(encoder.preprocess(images))
    hook.remove()
    assert encoder(images).shape == (2, 1 + 16, 32)
    torch.testing.assert_close(encoder(images), tokens[0])


@pytest.mark.parametrize("size", [(28, 28), (20, 14), (64, 100), (30, 200), (14, 90)])
def test_preprocessing_by_its_definition(size):
    """kornia's resize(bicubic, align_corners, antialias), written out."""
    image = rebuild.inputs("frames", (1, 3, *size))
    blurred = image
    if max(size) > 28:
        for dim, side in ((2, size[0]), (3, size[1])):
            sigma = max((side / 28 - 1) / 2, 0.001)
            length = int(max(4 * sigma, 3))
            length += length % 2 == 0
            half = length // 2
            kernel = torch.tensor([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-half, half + 1)])
            kernel = (kernel / kernel.sum()).view(1, 1, *((-1, 1) if dim == 2 else (1, -1))).repeat(3, 1, 1, 1)
            padding = (0, 0, half, half) if dim == 2 else (half, half, 0, 0)
            blurred = F.conv2d(F.pad(blurred, padding, mode="reflect"), kernel, groups=3)
    resized = F.interpolate(blurred, (28, 28), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    expected = ((resized + 1) / 2 - mean) / std
    torch.testing.assert_close(ImageEncoder(SMALL).preprocess(image), expected)


@torch.no_grad()
def test_preprocessing_is_in_float32_whatever_the_weights():
    encoder = ImageEncoder(SMALL)
    images = rebuild.inputs("frames", (1, 3, 50, 60))
    expected = encoder(images)
    encoder.to(torch.bfloat16)
    assert encoder.preprocess(images).dtype == torch.float32
    assert encoder(images).dtype == torch.bfloat16
    assert (encoder(images) - expected).abs().mean() < 0.05 * expected.abs().mean()


@torch.no_grad()
def test_resampler_sees_every_token_and_any_number_of_them():
    resampler = ImageResampler(dim=32, depth=2, dim_head=8, heads=4, num_queries=5, embedding_dim=12, output_dim=20)
    tokens = rebuild.inputs("tokens", (1, 7, 12))
    for position in range(7):
        changed = tokens.clone()
        changed[:, position] += 1
        assert not torch.allclose(resampler(changed), resampler(tokens))
    assert resampler(tokens[:, :3]).shape == (1, 5, 20)


def test_gradients_reach_every_weight_of_the_resampler():
    resampler = ImageResampler(dim=32, depth=2, dim_head=8, heads=4, num_queries=5, embedding_dim=12, output_dim=20)
    resampler(rebuild.inputs("tokens", (2, 7, 12))).square().mul(torch.arange(20.0)).mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in resampler.parameters())


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"image\.width 30 must be a multiple of image.heads 4"):
        ImageConfig(width=30, heads=4)
    with pytest.raises(ConfigError, match="patch_size"):
        ImageConfig(image_size=30)
    with pytest.raises(CheckpointError, match="published image encoder"):
        convert_image_encoder({"model.diffusion_model.out.2.bias": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="published image resampler"):
        convert_image_resampler({"proj_in.weight": torch.zeros(4)})

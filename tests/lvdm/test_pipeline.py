"""The pipeline on tiny random models: seeds, guidance, image conditions, and one sentence for every wrong argument."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lvdm.checkpoints import load_pipeline, save_pipeline
from lvdm.diffusion import Condition, make_generators
from lvdm.errors import ConfigError, VideoError
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline
from tests.lvdm.published import model_config

TINY = ["tiny_lvdm", "tiny_videocrafter", "tiny_videocrafter_i2v"]
RED = np.zeros((32, 32, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def build(name):
    """A random model whose outputs depend on everything: what training starts from zero is drawn here."""
    torch.manual_seed(0)
    config = model_config(name)
    components = build_components(config).eval()
    for parameter in components.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return VideoPipeline(components, config)


@pytest.fixture(scope="module")
def pipes():
    return {name: build(name) for name in TINY}


def run(pipe, prompt="a person jumps", **options):
    image = {"image": RED} if pipe.takes_image else {}
    return pipe(prompt, progress=False, **{**image, "steps": 2, "size": (16, 16), **options})


@pytest.mark.parametrize("name", TINY)
def test_a_prompt_becomes_a_video(pipes, name):
    video = run(pipes[name], num_frames=3, size=(16, 48))
    assert video.shape == (1, 3, 16, 48, 3)
    assert video.dtype == torch.uint8
    assert len(video.unique()) > 50
    assert run(pipes[name], ["a person walks", "a person runs"], num_frames=1).shape == (2, 1, 16, 16, 3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_seed_gives_the_same_video_in_any_batch(pipes, eta):
    pipe, prompts = pipes["tiny_lvdm"], ["a person jumps", "a person waves", "red"]
    batch = run(pipe, prompts, seed=5, eta=eta).int()
    alone = run(pipe, prompts[1], seed=6, eta=eta).int()
    chosen = run(pipe, prompts[1:], seed=[6, 5], eta=eta).int()
    assert (batch[1] - alone[0]).abs().max() <= 1  # rounding differs with the batch size
    assert (batch[1] - chosen[0]).abs().max() <= 1
    assert (batch[2] - chosen[1]).abs().max() > 10


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tiny_lvdm", {"prompt": "a person waves"}),
        ("tiny_lvdm", {"seed": 1}),
        ("tiny_lvdm", {"guidance": 7.0}),
        ("tiny_lvdm", {"eta": 1.0}),
        ("tiny_lvdm", {"steps": 3}),
        ("tiny_lvdm", {"num_frames": 3}),
        ("tiny_lvdm", {"negative_prompt": "red"}),
        ("tiny_lvdm", {"sampler": "dpmpp_2m"}),
        ("tiny_lvdm", {"sampler": "ddpm"}),
        ("tiny_videocrafter", {"fps": 24}),
        ("tiny_videocrafter_i2v", {"image": RED[:, :, ::-1].copy()}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_every_argument_has_an_effect(pipes, name, change):
    assert not torch.equal(run(pipes[name]), run(pipes[name], **change))


def test_what_a_call_leaves_out_comes_from_the_defaults(pipes):
    pipe = pipes["tiny_videocrafter"]
    spelled_out = {"num_frames": 4, "size": (32, 32), "steps": 4, "guidance": 4.0, "fps": 4, "eta": 0.0}
    spelled_out |= {"negative_prompt": "", "seed": 0, "sampler": "ddim"}
    assert torch.equal(pipe("red", progress=False), pipe("red", progress=False, **spelled_out))


def test_guidance_one_computes_the_conditional_branch_only(pipes, monkeypatch):
    pipe, batches = pipes["tiny_lvdm"], []
    forward = pipe.components.unet.forward

    def counted(x, *args, **kwargs):
        batches.append(len(x))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(pipe.components.unet, "forward", counted)
    run(pipe, guidance=1.0)
    run(pipe, guidance=3.0)
    assert batches == [1, 1, 2, 2]


def test_image_conditions_follow_the_text_and_are_grey_without_guidance(pipes):
    pipe = pipes["tiny_videocrafter_i2v"]
    positive, negative = pipe.conditions(["a person jumps", "red"], RED, negative_prompt="blue")
    assert positive.context.shape == (2, 77 + 16, 32)
    assert negative.context.shape == (1, 77 + 16, 32)
    assert positive.fps == negative.fps == 4
    text = pipe.encode_prompt(["a person jumps", "blue"])
    torch.testing.assert_close(positive.context[0, :77], text[0])
    torch.testing.assert_close(negative.context[0, :77], text[1])
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(positive.context[1, 77:], pipe.encode_image(red)[0])
    torch.testing.assert_close(negative.context[0, 77:], pipe.encode_image(torch.zeros(1, 3, 224, 224))[0])


def test_an_image_may_come_in_any_form(pipes, tmp_path):
    pipe, size = pipes["tiny_videocrafter_i2v"], (16, 24)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    forms = [pixels, torch.from_numpy(pixels), Image.fromarray(pixels), tmp_path / "image.png"]
    frames = pipe.first_frames(forms, 4, size)
    assert frames.shape == (4, 3, *size)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    assert torch.equal(pipe.first_frames(pixels, 4, size), frames)
    assert torch.equal(pipe.first_frames(np.stack([pixels] * 4), 4, size), frames)
    exact = pipe.first_frames(pixels, 1, (20, 30))[0].permute(1, 2, 0)
    torch.testing.assert_close(exact, torch.from_numpy(pixels) / 127.5 - 1)


def test_steps_can_be_composed_with_further_branches(pipes):
    pipe = pipes["tiny_lvdm"]
    generators = make_generators([3])
    x_T = pipe.initial_noise(generators, num_frames=4, size=(16, 16))
    assert x_T.shape == (1, 4, 4, 8, 8)
    context = pipe.encode_prompt(["", "a person jumps", "red"])
    branches = [Condition(row[None]) for row in context]
    steps = []
    options = {"generators": generators, "steps": 2, "callback": lambda step, total, x: steps.append((step, total))}
    latents = pipe.sample_latents(branches, [-2.0, 2.0, 1.0], x_T, **options)
    assert steps == [(1, 2), (2, 2)]
    assert pipe.decode(latents).shape == (1, 4, 16, 16, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny_lvdm", {"size": (31, 32)}, "size 31x32 (height x width) must consist of multiples of 2 pixels"),
        ("tiny_lvdm", {"size": (34, 32)}, "latent size 17x16 must be a multiple of 2"),
        ("tiny_lvdm", {"num_frames": 6}, "6 frames are too many"),
        ("tiny_lvdm", {"num_frames": 0}, "a video of 0 frames of 16x16 (height x width) is empty"),
        ("tiny_lvdm", {"size": (0, 32)}, "frames of 0x32 (height x width) is empty"),
        ("tiny_lvdm", {"guidance": math.nan}, "must be finite"),
        ("tiny_lvdm", {"seed": 2**64}, "does not fit into 64 bits"),
        ("tiny_lvdm", {"fps": 8}, "not conditioned on a frame rate"),
        ("tiny_lvdm", {"image": RED}, "this is a text-to-video model: it takes no image"),
        ("tiny_lvdm", {"sampler": "euler"}, "unknown sampler 'euler': choose from ddim, ddpm, dpmpp_2m"),
        ("tiny_lvdm", {"sampler": "dpmpp_2m", "eta": 0.5}, "eta is a setting of the sampler 'ddim'"),
        ("tiny_lvdm", {"seed": [1, 2]}, "1 prompts need 1 seeds, got 2"),
        ("tiny_lvdm", {"steps": 0}, "the number of sampling steps must be in 1..1000"),
        ("tiny_videocrafter_i2v", {"image": None}, "this is an image-to-video model: give it an image"),
        ("tiny_videocrafter_i2v", {"image": [RED, RED]}, "1 prompts need one image or 1, got 2"),
        ("tiny_videocrafter_i2v", {"image": RED / 255.0}, "an image must be uint8 (h, w, 3), got torch.float64"),
    ],
)
def test_impossible_arguments_are_one_sentence(pipes, name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        run(pipes[name], **options)
    assert "\n" not in str(caught.value)


def test_an_image_file_that_cannot_be_read_is_one_sentence(pipes, tmp_path):
    (tmp_path / "image.png").write_text("no image")
    for path in (tmp_path / "image.png", tmp_path / "absent.png"):
        with pytest.raises(VideoError, match=f"image {re.escape(str(path))} cannot be read"):
            run(pipes["tiny_videocrafter_i2v"], image=path)


def test_a_saved_pipeline_generates_the_same_video(pipes, tmp_path):
    pipe = pipes["tiny_videocrafter_i2v"]
    save_pipeline(pipe.components, pipe.config, tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model")
    assert torch.equal(run(loaded), run(pipe))
    assert not any(p.requires_grad for part in loaded.components.modules().values() for p in part.parameters())


def test_a_pipeline_in_half_precision_gives_nearly_the_same_video(pipes, tmp_path):
    pipe = pipes["tiny_videocrafter_i2v"]
    save_pipeline(pipe.components, pipe.config, tmp_path / "model")
    half = load_pipeline(tmp_path / "model", dtype=torch.bfloat16)
    assert half.components.codec.autoencoder.quant_conv.weight.dtype == torch.bfloat16
    difference = (run(half, guidance=1.0).int() - run(pipe, guidance=1.0).int()).abs().float().mean()
    assert difference < 8


@pytest.mark.parametrize("name", TINY)
def test_parts_are_built_in_place_and_in_type(name):
    config = model_config(name)
    on_meta = build_components(config, init="meta", dtype=torch.bfloat16)
    for module in on_meta.modules().values():
        assert all(parameter.is_meta for parameter in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())
    everywhere = build_components(config, device="meta", init="meta")
    assert all(buffer.is_meta for module in everywhere.modules().values() for buffer in module.buffers())
    random = build_components(config, dtype=torch.bfloat16)
    entries = [t for m in random.modules().values() for t in m.state_dict().values()]
    assert {tensor.dtype for tensor in entries} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in entries)
    assert random.modules().keys() == on_meta.modules().keys()


def test_only_the_parts_asked_for_are_built():
    config = model_config("tiny_videocrafter_i2v")
    assert build_components(config, parts=("unet",)).modules().keys() == {"unet"}
    assert build_components(config, parts=("codec", "image")).modules().keys() == {
        "autoencoder",
        "image_encoder",
        "image_resampler",
    }
    with pytest.raises(ConfigError, match=r"unknown model parts \['vae'\]"):
        build_components(config, parts=("vae",))
    with pytest.raises(ConfigError, match="missing: codec, text"):
        VideoPipeline(build_components(config, parts=("unet",)), config)
    with pytest.raises(ConfigError, match="did you mean 'model_channels'"):
        build_components(replace(config, unet={"modle_channels": 32}), parts=("unet",))

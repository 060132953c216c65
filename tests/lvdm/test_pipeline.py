"""The pipeline on tiny random models: seeds, guidance, image conditions, and one sentence for every wrong argument."""

import inspect
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lvdm.checkpoints import load_pipeline, save_pipeline
from lvdm.diffusion import Condition, make_generators
from lvdm.errors import ConfigError, VideoError
from lvdm.inputs import first_frames
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline
from lvdm.video import read_image
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
    return pipe(prompt, progress=False, **{**image, "num_inference_steps": 2, "height": 16, "width": 16, **options})


@pytest.mark.parametrize("name", TINY)
def test_a_prompt_becomes_a_video(pipes, name):
    video = run(pipes[name], num_frames=3, width=48)
    assert video.shape == (1, 3, 16, 48, 3)
    assert video.dtype == torch.uint8
    assert len(video.unique()) > 50
    assert run(pipes[name], ["a person walks", "a person runs"], num_frames=1).shape == (2, 1, 16, 16, 3)


def test_a_text_is_encoded_once_until_its_encoder_changes(monkeypatch):
    pipe, calls = build("tiny_lvdm"), []
    encode = pipe.components.text.encode
    monkeypatch.setattr(pipe.components.text, "encode", lambda texts: calls.append(texts) or encode(texts))
    first, again = (pipe.encode_prompt(["a person jumps"]) for _ in range(2))
    assert torch.equal(first, again) and calls == [["a person jumps"]]
    with torch.no_grad():
        next(pipe.components.text.parameters()).mul_(2.0)
    assert not torch.equal(pipe.encode_prompt(["a person jumps"]), first) and len(calls) == 2
    assert pipe.to(dtype=torch.bfloat16).encode_prompt(["a person jumps"]).dtype == torch.bfloat16


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
        ("tiny_lvdm", {"guidance_scale": 7.0}),
        ("tiny_lvdm", {"eta": 1.0}),
        ("tiny_lvdm", {"num_inference_steps": 3}),
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
    spelled_out = {"num_frames": 4, "height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 4.0}
    spelled_out |= {"fps": 4, "eta": 0.0, "negative_prompt": "", "seed": 0, "sampler": "ddim"}
    assert torch.equal(pipe("red", progress=False), pipe("red", progress=False, **spelled_out))


def test_guidance_one_computes_the_conditional_branch_only(pipes, monkeypatch):
    pipe, batches = pipes["tiny_lvdm"], []
    forward = pipe.components.unet.forward

    def counted(x, timesteps, context, **kwargs):
        assert len(x) == len(timesteps) == 1  # what comes before the context is computed once for both
        batches.append(len(context))
        return forward(x, timesteps, context, **kwargs)

    monkeypatch.setattr(pipe.components.unet, "forward", counted)
    run(pipe, guidance_scale=1.0)
    run(pipe, guidance_scale=3.0)
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


def test_an_image_may_come_in_any_form(tmp_path):
    size = (16, 24)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    forms = [pixels, torch.from_numpy(pixels), Image.fromarray(pixels), tmp_path / "image.png"]
    frames = first_frames(forms, 4, size)
    assert frames.shape == (4, 3, *size)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    assert torch.equal(first_frames(pixels, 4, size), frames)
    assert torch.equal(first_frames(np.stack([pixels] * 4), 4, size), frames)
    mirrored = np.broadcast_to(pixels[:, ::-1], pixels.shape)  # read-only, too
    assert torch.equal(first_frames(mirrored, 1, (20, 30)), first_frames(pixels, 1, (20, 30)).flip(-1))
    exact = first_frames(pixels, 1, (20, 30))[0].permute(1, 2, 0)
    torch.testing.assert_close(exact, torch.from_numpy(pixels) / 127.5 - 1)


def test_a_large_image_is_shrunk_without_aliasing_and_a_stretched_one_is_warned_of():
    stripes = np.zeros((320, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the video can show: they are to become grey, not black or white
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shrunk = first_frames(stripes, 1, (40, 64))
    assert shrunk.abs().max() < 0.1
    with pytest.warns(UserWarning, match="an image of 512x320 is stretched to the video's 64x64: crop it"):
        first_frames(stripes, 1, (64, 64))


def test_transparent_parts_of_an_image_are_white_and_16_bits_are_scaled(tmp_path):
    """As viewers show both: what is stored under transparent parts is arbitrary, and Pillow cuts 16 bits off."""
    grey = np.linspace(0, 255, 64 * 4).astype(np.uint8).reshape(4, 64)
    alpha = np.full((4, 64), 255, np.uint8)
    alpha[:, :8], alpha[:, 8:16] = 0, 128
    shown = np.round(grey * (alpha / 255) + 255 * (1 - alpha / 255))
    Image.fromarray(np.dstack([grey, grey, grey, alpha]), "RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([grey, alpha]), "LA").save(tmp_path / "la.png")
    Image.fromarray(grey).save(tmp_path / "key.png", transparency=int(grey[3, 60]))  # one colour is transparent
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "wide.png")
    keyed = np.where(grey == grey[3, 60], 255, grey)
    for name, expected in [("rgba", shown), ("la", shown), ("key", keyed), ("wide", grey)]:
        path = tmp_path / f"{name}.png"
        read = read_image(path)
        assert read.dtype == torch.uint8 and read.shape == (4, 64, 3)
        assert np.abs(read.numpy().astype(float) - expected[..., None]).max() <= 1, name
        with Image.open(path) as opened:  # an image that is given is treated as its file
            assert torch.equal(first_frames(opened, 1, (4, 64)), first_frames(path, 1, (4, 64)))


def test_steps_can_be_composed_with_further_branches(pipes):
    pipe = pipes["tiny_lvdm"]
    generators = make_generators([3])
    x_T = pipe.initial_noise(generators, num_frames=4, size=(16, 16))
    assert x_T.shape == (1, 4, 4, 8, 8)
    context = pipe.encode_prompt(["", "a person jumps", "red"])
    branches = [Condition(row[None]) for row in context]
    steps = []
    options = {"generators": generators, "num_inference_steps": 2}
    options["callback"] = lambda step, total, t, x: steps.append((step, total))
    latents = pipe.sample_latents(branches, [-2.0, 2.0, 1.0], x_T, **options)
    assert steps == [(1, 2), (2, 2)]
    assert pipe.decode(latents).shape == (1, 4, 16, 16, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny_lvdm", {"height": 31, "width": 32}, "size 31x32 (height x width) must consist of multiples of 4 pixels"),
        ("tiny_lvdm", {"height": 34, "width": 32}, "size 34x32 (height x width) must consist of multiples of 4 pixels"),
        ("tiny_lvdm", {"num_frames": 6}, "6 frames are too many"),
        ("tiny_lvdm", {"num_frames": 0}, "num_frames is 0: it must be from 1 to 65536"),
        ("tiny_lvdm", {"height": 0}, "height is 0: it must be from 1 to 65536"),
        ("tiny_lvdm", {"guidance_scale": math.nan}, "guidance_scale is nan"),
        ("tiny_lvdm", {"guidance_scale": "4"}, "guidance_scale must be a number, got '4'"),
        (
            "tiny_lvdm",
            {"guidence_scale": 4.0},
            "unknown key 'guidence_scale' in the call: did you mean 'guidance_scale'",
        ),
        ("tiny_lvdm", {"references": 4}, "unknown key 'references' in the call: valid keys are prompt, image,"),
        ("tiny_lvdm", {"images": 4}, "unknown key 'images' in the call: did you mean 'image'?"),
        ("tiny_lvdm", {"seed": 1, "generator": torch.Generator()}, "a generator stands in place of a seed"),
        ("tiny_lvdm", {"steps": 4}, "'steps' in the call is called 'num_inference_steps' now"),
        ("tiny_lvdm", {"eta": 2.0}, "eta is 2.0: it must be from 0 to 1"),
        ("tiny_lvdm", {"output_type": "gif"}, "output_type is 'gif': choose from pixels, np, pt, pil"),
        ("tiny_lvdm", {"generator": [torch.Generator()] * 2}, "1 prompts need one torch.Generator or 1"),
        ("tiny_lvdm", {"seed": 2**64}, "does not fit into 64 bits"),
        ("tiny_lvdm", {"fps": 8}, "not conditioned on a frame rate"),
        ("tiny_lvdm", {"image": RED}, "this is a text-to-video model: it takes no image"),
        (
            "tiny_lvdm",
            {"sampler": "euler"},
            "sampler must be one of 'ddim', 'ddpm', 'dpmpp_2m', 'lcm', 'scheduler', got 'euler'",
        ),
        ("tiny_lvdm", {"sampler": "dpmpp_2m", "eta": 0.5}, "eta is a setting of the sampler 'ddim'"),
        ("tiny_lvdm", {"seed": [1, 2]}, "1 prompts need 1 seeds, got 2"),
        ("tiny_lvdm", {"num_inference_steps": 0}, "num_inference_steps is 0: it must be from 1 to 65536"),
        ("tiny_videocrafter_i2v", {"image": None}, "this is an image-to-video model: give it an image"),
        ("tiny_videocrafter_i2v", {"image": [RED, RED]}, "one prompt takes one image, got 2"),
        ("tiny_videocrafter_i2v", {"image": RED / 255.0}, "an image must be uint8 (h, w, 3), got torch.float64"),
        ("tiny_videocrafter_i2v", {"image": RED[:0]}, "an image must be uint8 (h, w, 3), got torch.uint8 (0, 32, 3)"),
        ("tiny_videocrafter_i2v", {"image": np.array([["no"]])}, "pixels must be numbers, got an array of <U2"),
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
    with pytest.raises(VideoError, match="it is a folder; give a PNG, JPEG or WebP file"):
        run(pipes["tiny_videocrafter_i2v"], image=tmp_path)


def test_a_saved_pipeline_generates_the_same_video(pipes, tmp_path):
    pipe = pipes["tiny_videocrafter_i2v"]
    save_pipeline(pipe.components, pipe.config, tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model")
    assert torch.equal(run(loaded), run(pipe))
    weights = [p for part in loaded.components.modules().values() for p in part.parameters()]
    assert not any(p.requires_grad for p in weights)
    assert not any(p.data_ptr() % 64 for p in weights)  # or some processors round differently


def test_a_pipeline_in_half_precision_gives_nearly_the_same_video(pipes, tmp_path):
    pipe = pipes["tiny_videocrafter_i2v"]
    save_pipeline(pipe.components, pipe.config, tmp_path / "model")
    half = load_pipeline(tmp_path / "model", dtype=torch.bfloat16)
    assert half.components.codec.autoencoder.quant_conv.weight.dtype == torch.bfloat16
    difference = (run(half, guidance_scale=1.0).int() - run(pipe, guidance_scale=1.0).int()).abs().float().mean()
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


def test_videos_come_in_the_forms_of_diffusers(pipes):
    pixels = run(pipes["tiny_lvdm"])
    array = run(pipes["tiny_lvdm"], output_type="np")
    assert isinstance(array, np.ndarray) and np.array_equal(array, pixels.numpy().astype(np.float32) / 255)
    tensor = run(pipes["tiny_lvdm"], output_type="pt")
    assert tensor.shape == (1, 4, 3, 16, 16) and torch.equal(tensor, torch.from_numpy(array).permute(0, 1, 4, 2, 3))
    [frames] = run(pipes["tiny_lvdm"], output_type="pil")
    assert np.array_equal(np.stack([np.asarray(frame) for frame in frames]), pixels[0].numpy())


def test_a_generator_is_a_seed_and_several_samples_may_share_one(pipes):
    pipe = pipes["tiny_lvdm"]
    assert torch.equal(run(pipe, generator=make_generators([3])), run(pipe, seed=3))
    assert torch.equal(run(pipe, generator=torch.Generator().manual_seed(3)), run(pipe, seed=3))
    first, second = run(pipe, ["red", "red"], generator=torch.Generator().manual_seed(3))
    assert not torch.equal(first, second)


def test_a_callback_sees_every_step_and_may_change_the_latents(pipes):
    pipe, seen = pipes["tiny_lvdm"], []

    def callback(pipeline, step, timestep, tensors):
        seen.append((pipeline is pipe, step, timestep, tuple(tensors["latents"].shape)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    video = run(pipe, callback_on_step_end=callback)
    assert seen == [(True, 0, 501, (1, 4, 4, 8, 8)), (True, 1, 1, (1, 4, 4, 8, 8))]
    assert torch.equal(video, pipe.decode(torch.zeros(1, 4, 4, 8, 8)))


def test_how_many_steps_are_taken_is_known_beforehand(pipes):
    pipe = pipes["tiny_lvdm"]

    def watch(seen):
        return lambda pipeline, step, timestep, tensors: seen.append(step)

    counts = {(6, "ddim"): 7, (5, "dpmpp_2m"): 5, (64, "dpmpp_2m"): 67, (1, "ddim"): 1, (6, "ddpm"): 6}
    for (asked, sampler), taken in counts.items():
        seen: list[int] = []
        run(pipe, num_inference_steps=asked, sampler=sampler, num_frames=1, callback_on_step_end=watch(seen))
        assert pipe.steps_taken(asked, sampler) == taken and seen == list(range(taken)), (asked, sampler)


def test_the_signature_shows_every_option():
    shown = inspect.signature(VideoPipeline.__call__).parameters
    assert {"num_inference_steps", "guidance_scale", "output_type", "generator"} <= shown.keys()
    assert "options" not in shown and shown["guidance_scale"].default is None


def test_slicing_the_autoencoder_changes_rounding_at_most(pipes):
    pipe = pipes["tiny_lvdm"]
    whole, before = run(pipe).int(), pipe.components.codec.slice_size
    try:
        pipe.enable_vae_slicing()
        assert pipe.components.codec.slice_size == 1
        assert (run(pipe).int() - whole).abs().max() <= 1
    finally:
        pipe.components.codec.slice_size = before


def test_a_model_folder_of_an_earlier_version_is_read(pipes, tmp_path):
    pipe = pipes["tiny_lvdm"]
    save_pipeline(pipe.components, pipe.config, tmp_path / "model")
    file = tmp_path / "model" / "config.yaml"
    new = file.read_text()
    assert "num_inference_steps: 4" in new and "guidance_scale: 4.0" in new
    file.write_text(new.replace("num_inference_steps:", "steps:").replace("guidance_scale:", "guidance:"))
    assert load_pipeline(tmp_path / "model").config == pipe.config
    file.write_text(new.replace("guidance_scale: 4.0", "guidance_scale: 4.0\n  guidance: 5.0"))
    with pytest.raises(ConfigError, match="both 'guidance_scale' and 'guidance', its old name"):
        load_pipeline(tmp_path / "model")

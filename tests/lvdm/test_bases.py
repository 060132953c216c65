"""Pipelines of diffusers as base models: every class of the table, tiny and with random weights."""

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvdm.bases.backbone import DiffusersBackbone
from lvdm.bases.codec import frames_that_fit
from lvdm.bases.kinds import kind_of
from lvdm.bases.loading import describe_base, load_base, wrap
from lvdm.bases.pipeline import SIGMAS
from lvdm.bases.schedules import Steps, ready, schedule_of
from lvdm.checkpoints import find_model, load_pipeline
from lvdm.diffusion import Condition, Denoiser, DiffusionConfig, FlowSchedule, sample_ddim
from lvdm.errors import CheckpointError, ConfigError, VideoError
from lvdm.models.backbone import Compression
from tests.lvdm.tiny_bases import NAMES, SIZES, pipeline

pytest.importorskip("diffusers")
PROMPTS = ["a person jumps", "a red person walks"]


def image(name: str) -> Any:
    """A picture for pipelines that take one."""
    height, width = SIZES[name][1]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels) if "Image" in name or "StableVideo" in name else None


@pytest.mark.parametrize("name", NAMES)
def test_a_base_gives_the_videos_of_its_own_pipeline(name, monkeypatch):
    import lvdm.bases.images as images

    pipe, (frames, (height, width)) = pipeline(name), SIZES[name]
    base = wrap(pipe)
    options: dict[str, Any] = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": 3}
    shape = base.components.unet.latent_shape(frames, (height, width), base.components.codec.compression)
    x_T = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    own = {"latents": _as_given(name, x_T), "output_type": "np", **options}
    if name == "StableVideoDiffusionPipeline":
        monkeypatch.setitem(base.__dict__, "image_condition", lambda *args: images.svd(*args, noise=0.0))
        own |= {"noise_aug_strength": 0.0}
        monkeypatch.setattr("lvdm.bases.kinds.SVD_IMAGE_NOISE", 0.0)  # which the network is told
    else:
        own |= {"prompt": PROMPTS[0], "guidance_scale": 4.0, "negative_prompt": "blue"}
    if image(name) is not None:
        own |= {"image": image(name), "generator": torch.Generator().manual_seed(0)}
    if name == "CogVideoXImageToVideoPipeline":  # which draws from the posterior of its image, where we take the mean
        monkeypatch.setattr(
            "diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video.retrieve_latents",
            lambda found, generator: found.latent_dist.mode(),
        )
    expected = torch.from_numpy(np.asarray(pipe(**own).frames)).reshape(frames, height, width, 3)
    monkeypatch.setattr(base, "initial_noise", lambda *args, **kwargs: x_T)
    guidance = {} if name == "StableVideoDiffusionPipeline" else {"guidance_scale": 4.0, "negative_prompt": "blue"}
    ours = base(PROMPTS[0], image=image(name), progress=False, **guidance, **options)[0]
    assert (ours.float() - 255 * expected).abs().max() < 0.51 + 0.05
    assert expected.std() > 0.01


def _as_given(name: str, x_T: torch.Tensor) -> torch.Tensor:
    """Initial latents as the pipeline's own call takes them."""
    if name.startswith("LTX"):
        return x_T.flatten(2).transpose(1, 2)
    return x_T.transpose(1, 2) if name.startswith(("Cog", "StableVideo")) else x_T


# -- noise levels -------------------------------------------------------------------------------------------------


def test_flow_matching_is_a_schedule_like_the_others():
    schedule = DiffusionConfig(schedule="flow", prediction="flow", spacing="trailing", shift=3.0).build_schedule()
    x0, noise = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    t = torch.tensor([0, 100, 500, 999])
    sigma = 3 * (t + 1) / 1000 / (1 + 2 * (t + 1) / 1000)
    torch.testing.assert_close(schedule.told(t), 1000 * sigma)
    x = schedule.add_noise(x0, noise, t)
    torch.testing.assert_close(x, torch.lerp(x0, noise, sigma[:, None, None]))
    target = schedule.target(x0, noise, t, "flow")
    torch.testing.assert_close(target, noise - x0)
    for found, right in zip(schedule.solve(x, target, t, "flow"), (x0, noise)):
        torch.testing.assert_close(found, right)
    with pytest.raises(ConfigError, match="both to be 'flow'"):
        DiffusionConfig(prediction="flow")
    with pytest.raises(ConfigError, match="only the schedule 'flow' has a shift"):
        DiffusionConfig(shift=3.0)
    for betas in ({"zero_terminal_snr": True}, {"rescale_to": 0.7}):
        with pytest.raises(ConfigError, match="'flow' has none: leave them out"):
            DiffusionConfig(schedule="flow", prediction="flow", **betas)
    with pytest.raises(ConfigError, match="must be above 0"):
        FlowSchedule(0.0)


def test_ddim_on_flow_matching_is_eulers_method_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Curve(torch.nn.Module):
        def forward(self, x, timesteps, context, fps=None):
            return torch.sin(3 * x) + timesteps.view(-1, 1, 1, 1, 1) / 1000

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x = x_T = torch.randn(2, 1, 2, 3, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(Curve()(x, t.expand(2), None), t, x, return_dict=False)[0]
    schedule = schedule_of(scheduler, 0)
    guided = Denoiser(Curve(), schedule, "flow").guided([Condition(torch.zeros(1, 1, 1))], [1.0])
    torch.testing.assert_close(sample_ddim(guided, x_T, schedule, 4, spacing="trailing"), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "WanPipeline", "CogVideoXPipeline", "LTXPipeline", "HunyuanVideoPipeline", "MochiPipeline",
        "StableVideoDiffusionPipeline",
    ],
)  # fmt: skip
def test_training_sees_the_noise_levels_that_sampling_does(name):
    """At each of the scheduler's own steps: the same signal and noise in the network's input, told the same."""
    base = wrap(pipeline(name))
    frames, size = SIZES[name]
    base.prepare_training(frames, size)
    schedule, scheduler = base.components.schedule, base.pipe.scheduler
    tokens = 2 if name != "LTXPipeline" else 8
    ready_scheduler = ready(scheduler, 5, tokens, torch.device("cpu"), SIGMAS.get(name))
    loop = Steps(ready_scheduler, None, None)
    told = torch.stack([schedule.told(torch.tensor([t]))[0] for t in range(len(schedule))]).double()
    for i, t in enumerate(ready_scheduler.timesteps[:-1]):
        nearest = int((told - float(loop.told(t))).abs().argmin())
        alpha, sigma = float(schedule.alphas[nearest]), float(schedule.sigmas[nearest])
        if name == "CogVideoXPipeline":
            right = float((1 - ready_scheduler.alphas_cumprod[int(t)]).sqrt())
        elif name == "StableVideoDiffusionPipeline":
            level = float(ready_scheduler.sigmas[i])
            right = level / (1 + level**2) ** 0.5
        else:
            right = float(ready_scheduler.sigmas[i])
            right = 1 - right if name == "MochiPipeline" else right  # whose levels are those of the signal
        assert abs(sigma - right) < 0.02
        assert alpha == pytest.approx(1 - sigma if base.components.unet.prediction == "flow" else (1 - sigma**2) ** 0.5)


@pytest.mark.parametrize(("kind", "taken"), [("HeunDiscreteScheduler", 7), ("DDIMScheduler", 4)])
def test_how_many_steps_a_scheduler_takes_is_known_beforehand(kind, taken, monkeypatch):
    import diffusers

    pipe, seen = pipeline("TextToVideoSDPipeline"), []
    monkeypatch.setattr(pipe, "scheduler", getattr(diffusers, kind).from_config(pipe.scheduler.config))
    base = wrap(pipe)
    options: dict[str, Any] = {"num_frames": 1, "height": 16, "width": 16, "num_inference_steps": 4, "progress": False}
    base(PROMPTS[0], callback_on_step_end=lambda pipeline, step, *others: seen.append(step), **options)
    assert base.steps_taken(4, "scheduler") == taken and seen == list(range(taken))


# -- what is refused ----------------------------------------------------------------------------------------------


def test_frames_that_a_causal_autoencoder_takes():
    codec = wrap(pipeline("WanPipeline")).components.codec
    assert codec.compression == Compression(space=8, time=4) and codec.compression.frames(3) == 9
    assert [frames_that_fit(n, codec.compression) for n in (1, 4, 5, 80, 81)] == [1, 1, 5, 77, 81]
    assert codec.posterior(torch.zeros(1, 3, 5, 16, 16)).mode().shape == (1, 4, 2, 2, 2)
    with pytest.raises(VideoError, match="8 frames do not fit: this autoencoder takes 1 more than a multiple of 4"):
        codec.posterior(torch.zeros(1, 3, 8, 16, 16))


def test_options_that_a_base_cannot_take_are_refused_in_one_sentence():
    wan, svd = wrap(pipeline("WanPipeline")), wrap(pipeline("StableVideoDiffusionPipeline"))
    small: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 1, "progress": False}
    for changes, sentence in [
        ({"sampler": "lcm"}, "samples with its own scheduler, UniPCMultistepScheduler: leave sampler out"),
        ({"step_cache": 2}, "step_cache leaves out"),
        ({"eta": 0.5}, "eta is no setting of this model's scheduler, UniPCMultistepScheduler: leave it out"),
        ({"num_frames": 6}, "6 frames do not fit"),
        ({"height": 24}, "do not consist of this model's patches of 2"),
        ({"image": torch.zeros(16, 16, 3, dtype=torch.uint8)}, "takes no image"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            wan("a person jumps", **(small | changes))
    with pytest.raises(ConfigError, match="give it an image"):
        svd("a person jumps", **(small | {"num_frames": 4}))
    with pytest.raises(ConfigError, match="choose auto, none or full"):
        wan.accelerate("graphs")
    assert wan.acceleration.choice == "the network runs as diffusers has it"  # what `aicl sample` ends with
    with pytest.raises(ConfigError, match="class Linear is not known here: known are WanTransformer3DModel"):
        kind_of("Linear")
    with pytest.raises(ConfigError, match="image-to-video model: give it an image"):
        DiffusersBackbone(pipeline("StableVideoDiffusionPipeline").unet, Compression(8), "v")(
            torch.zeros(1, 4, 2, 4, 4), torch.zeros(1), torch.zeros(1, 1, 16)
        )


def test_folders_that_are_no_base_are_told(tmp_path, monkeypatch):
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(ConfigError, match=r"holds a NoSuchPipeline, which diffusers .* does not have"):
        load_base(tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}'
    )
    with pytest.raises(CheckpointError, match="is a WanPipeline without its vae: fetch or copy the whole folder"):
        load_base(tmp_path)
    (tmp_path / "vae").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read as a WanPipeline"):
        load_base(tmp_path)
    (tmp_path / "vae/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"vae is one part of a model of diffusers: give .*, which holds all"):
        load_pipeline(tmp_path / "vae")
    monkeypatch.setitem(sys.modules, "diffusers", None)  # not installed
    with pytest.raises(ConfigError, match=r'which needs the extra "diffusers": pip install -e "\.\[diffusers\]"'):
        load_base(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_config_files_alone_say_what_a_loaded_pipeline_does(name, tmp_path):
    pipeline(name).save_pretrained(tmp_path)
    base = load_base(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    told, loaded = describe_base(tmp_path), base.config
    assert told.defaults == loaded.defaults and told.unet == loaded.unet and told.family == loaded.family
    assert told.takes_image == base.takes_image and told.factor == base.components.codec.factor


def test_parts_are_loaded_as_they_are_stored_and_go_together(tmp_path):
    name, stored = "WanImageToVideoPipeline", {"transformer": torch.bfloat16, "text_encoder": torch.bfloat16}
    parts = dict(pipeline(name).components)
    parts |= {part: copy.deepcopy(parts[part]).to(dtype) for part, dtype in stored.items()}
    type(pipeline(name))(**parts).save_pretrained(tmp_path)
    base = load_base(tmp_path)
    for part, dtype in {**stored, "vae": torch.float32, "image_encoder": torch.float32}.items():
        largest = max(getattr(base.pipe, part).parameters(), key=lambda parameter: parameter.numel())
        assert largest.dtype == dtype, part
    options: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 1, "progress": False}
    assert base("a person jumps", image=image(name), **options).shape == (1, 5, 16, 16, 3)
    assert load_base(tmp_path, dtype=torch.float32).components.unet.dtype == torch.float32


def test_a_pipeline_of_the_hub_is_fetched_as_diffusers_does(tmp_path, monkeypatch):
    asked = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, **options: file)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", fetch)
    assert find_model("some-owner/some-model") == tmp_path
    assert asked["name"] == "some-owner/some-model" and asked["use_safetensors"]

    def unreachable(name: str, **options: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", unreachable)
    with pytest.raises(
        CheckpointError, match=r"some-owner/some-model is no folder here.*could not be fetched \(no route"
    ):
        find_model("some-owner/some-model")

"""Algorithm 2 end to end with tiny random models: what references change, and what they must not."""

import contextlib
import warnings
from pathlib import Path

import pytest
import torch

from aicl import (
    ActionPrism,
    AICLPipeline,
    IntegrationConfig,
    MotionFeatures,
    PrismConfig,
    Reference,
    integrate,
    model_files,
    pipeline,
    reference_encoder,
)
from aicl.adapter import save_adapter
from aicl.options import ModelOptions
from aicl.sampling_models import load_model
from lvdm import config as configs
from lvdm.errors import CheckpointError, ConfigError, UserError, VideoError
from lvdm.inputs import first_frames
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from lvdm.video import write_video
from tests.aicl.tiny_models import randomise
from tests.lvdm.training_runs import ONE_LEVEL

MODELS = Path(__file__).parents[2] / "configs" / "models"
PRISM = {"context_dim": 32, "width": 16, "depth": 1, "heads": 2, "head_dim": 8, "text_width": 10}


def tiny_pipeline(model: str = "tiny_videocrafter", **unet: int) -> AICLPipeline:
    mapping = configs.load(MODELS / f"{model}.yaml")
    mapping["unet"] |= ONE_LEVEL | unet
    config = configs.from_mapping(ModelConfig, mapping)
    torch.manual_seed(0)
    components = build_components(config).eval()
    randomise(components.unet, seed=0)
    prism, integrated = ActionPrism(PrismConfig(**PRISM)), integrate(components.unet, IntegrationConfig(head_dim=16))
    randomise(prism, seed=1)
    randomise(integrated.blocks, seed=2)
    return AICLPipeline(VideoPipeline(components, config), prism, integrated)


def test_a_distilled_model_samples_with_lcm_and_is_called_once_a_step_or_twice_with_a_strength_of_references():
    pipe = tiny_pipeline(time_cond_proj_dim=8, motion_cond_proj_dim=8)
    pipe.base.config.defaults.sampler = "lcm"
    rows: list[int] = []
    pipe.base.components.unet.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    plain = generate(pipe)
    assert rows == [1, 1] and not torch.equal(plain, generate(pipe, sampler="ddim"))
    shown = generate(pipe, references=[pixels(0)])
    assert rows == [1] * 6 and not torch.equal(shown, plain)
    strong = generate(pipe, references=[pixels(0)], reference_guidance_scale=3.0)
    assert rows[6:] == [2, 2] and not torch.equal(strong, shown)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def pixels(seed: int, frames: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (frames, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


QUICK = {"num_inference_steps": 2, "progress": False}
PROMPT = "a red person walks"


def generate(pipe, prompt=PROMPT, references=(), **options):
    return pipe(prompt, references=references, **QUICK | options)


def test_references_act_and_scale_zero_is_the_base(pipe):
    base = pipe.base(PROMPT, **QUICK)
    assert base.shape == (1, 4, 32, 32, 3)
    with_reference = generate(pipe, references=[pixels(0)])
    assert not torch.equal(with_reference, base)
    assert not torch.equal(with_reference, generate(pipe, references=[pixels(1)]))
    assert not torch.equal(with_reference, generate(pipe, references=[Reference(pixels(0), "a blue person runs")]))
    assert torch.equal(generate(pipe), base)
    assert torch.equal(generate(pipe, references=[pixels(0)], scale=0), base)
    assert torch.equal(generate(pipe, references=[Reference(pixels(0), weight=0)]), base)
    assert torch.equal(pipe.base(PROMPT, **QUICK), base)


def test_a_seed_is_a_video(pipe):
    references = [pixels(0), pixels(1)]
    one = generate(pipe, references=references, seed=3)
    assert torch.equal(generate(pipe, references=references, seed=3), one)
    several = generate(pipe, [PROMPT] * 2, references, seed=2)
    assert (several[1].int() - one[0].int()).abs().max() <= 1  # rounding, in another batch
    assert not torch.equal(several[0], several[1])


def test_each_prompt_may_have_references_of_its_own(pipe):
    prompts, references = [PROMPT, "a blue person jumps"], [[pixels(0)], [pixels(1)]]
    together = generate(pipe, prompts, references, seed=5)
    for i in range(2):
        alone = generate(pipe, prompts[i], references[i], seed=5 + i)
        assert (together[i].int() - alone[0].int()).abs().max() <= 1


def test_guidance_of_references(pipe, monkeypatch):
    calls = []
    hook = pipe.integrated.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((len(args[2]), kwargs.get("references"))), with_kwargs=True
    )
    references = [pixels(0)]
    conditional = generate(pipe, references=references, guidance_scale=4.0)
    rows, extras = calls[-1]
    assert rows == 2 and [rows for rows, _ in extras] == [slice(1, 2)]  # R in the conditional branch only
    third = generate(pipe, references=references, guidance_scale=4.0, reference_guidance_scale=4.0)
    assert torch.equal(third, conditional)  # equal strengths: e(text) cancels, and is not computed
    generate(pipe, references=references, guidance_scale=4.0, reference_guidance_scale=2.0)
    rows, extras = calls[-1]
    assert rows == 3 and [rows for rows, _ in extras] == [slice(2, 3)]
    assert torch.equal(
        generate(pipe, references=references, guidance_scale=4.0, reference_guidance_scale=0.0),
        pipe.base(PROMPT, guidance_scale=4.0, **QUICK),
    )
    hook.remove()


def test_prism_runs_once_per_video(pipe):
    calls = []
    hook = pipe.prism.register_forward_hook(lambda *_: calls.append(1))
    generate(pipe, references=[pixels(0), pixels(1), pixels(2)])
    hook.remove()
    assert len(calls) == 1
    assert list(pipe.timings) == ["text", "references", "prism", "first_step", "sampling", "decode"]
    assert all(seconds > 0 for seconds in pipe.timings.values())


def test_the_bar_tells_the_two_videos_of_a_comparison_apart(pipe, capsys):
    pipe.base(PROMPT, **QUICK | {"progress": True})
    generate(pipe, references=[pixels(0)], progress=True)
    assert {"sampling", "sampling with references"} <= {b.split(":")[0] for b in capsys.readouterr().err.split("\r")}


def test_references_that_were_seen_before_are_not_encoded_again(pipe, tmp_path, monkeypatch):
    calls = []
    encode = pipe.base.components.codec.posterior
    monkeypatch.setattr(pipe.base.components.codec, "posterior", lambda frames: calls.append("video") or encode(frames))
    hook = pipe.prism.register_forward_hook(lambda *_: calls.append("prism"))
    video = write_video(tmp_path / "a.mp4", pixels(5), fps=4)
    first, again = (generate(pipe, references=[video, pixels(6)]) for _ in range(2))
    assert calls == ["video", "prism"] and torch.equal(first, again)
    another = generate(pipe, "a red person runs", references=[video, pixels(6)])
    assert calls == ["video", "prism", "prism"] and not torch.equal(first, another)
    features = pipe.encode_references([video, pixels(6)], PROMPT)
    features.features.zero_()  # the caller's own
    assert torch.equal(generate(pipe, references=[video, pixels(6)]), first) and len(calls) == 3
    write_video(video, pixels(7), fps=4, overwrite=True)
    assert not torch.equal(generate(pipe, references=[video, pixels(6)]), first) and len(calls) == 5
    with torch.no_grad():
        pipe.prism.output[-1].bias.add_(1.0)
    changed = generate(pipe, references=[video, pixels(6)])
    assert calls[5:] == ["prism"] and not torch.equal(changed, first)
    with torch.no_grad():
        pipe.prism.output[-1].bias.sub_(1.0)
    hook.remove()


def test_encoded_references_replace_their_videos(pipe, tmp_path):
    video = write_video(tmp_path / "a.mp4", pixels(0), fps=4)
    direct = generate(pipe, references=[video])
    encoded = pipe.encode_references([video], PROMPT)
    encoded.save(tmp_path / "r.safetensors")
    with pytest.raises(CheckpointError, match="exists already"):
        encoded.save(tmp_path / "r.safetensors")
    video.unlink()
    assert torch.equal(generate(pipe, references=[tmp_path / "r.safetensors"]), direct)
    assert MotionFeatures.load(tmp_path / "r.safetensors").sources == [str(video)]
    other = tiny_pipeline()
    randomise(other.prism, seed=7)
    with pytest.raises(CheckpointError, match="another adapter"):
        generate(other, references=[tmp_path / "r.safetensors"])
    with pytest.raises(CheckpointError, match="do not exist"):
        generate(pipe, references=["none.safetensors"])
    mixed = generate(pipe, references=[pipe.encode_references(pixels(1), PROMPT), pixels(0)])
    assert (mixed.int() - generate(pipe, references=[pixels(1), pixels(0)]).int()).abs().max() <= 1


def test_references_encoded_apart_are_those_encoded_together(pipe):
    parts = [pipe.encode_references([pixels(i)], PROMPT) for i in range(2)]
    together = generate(pipe, references=[pixels(0), pixels(1)])
    assert (generate(pipe, references=parts).int() - together.int()).abs().max() <= 1


def test_image_to_video_reads_the_first_frame_of_references():
    pipe = tiny_pipeline("tiny_videocrafter_i2v")
    image = pixels(9)[0]
    contexts = []
    pipe.prism.register_forward_hook(lambda module, args, out: contexts.append(args[1]))
    video = generate(pipe, references=[pixels(0), pixels(1)], image=image)
    expected = pipe.base.encode_image(first_frames([pixels(i)[0] for i in (0, 1)], 2, (32, 32)))
    torch.testing.assert_close(contexts[0][0, :, 77:], expected)
    assert not torch.equal(video, generate(pipe, image=image))


@pytest.mark.parametrize("pointer", [False, True])
def test_save_and_load_give_the_same_video(pipe, tmp_path, pointer):
    references = [pixels(0)]
    expected = generate(pipe, references=references)
    base = None
    if pointer:
        pipe.save_pretrained(tmp_path / "whole")
        base = tmp_path / "whole" / "base"
    pipe.save_pretrained(tmp_path / "model", base=base)
    with pytest.raises(CheckpointError, match="exists already"):
        pipe.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AICLPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(generate(loaded, references=references), expected)
    assert (tmp_path / "model" / "base").exists() != pointer
    loaded.remove_adapter()
    with pytest.raises(ConfigError, match="no adapter"):
        generate(loaded, references=references)
    loaded.load_adapter(tmp_path / "model")
    assert torch.equal(generate(loaded, references=references), expected)
    with pytest.raises(ConfigError, match=r"only prompt may be given without its name: .* references="):
        loaded(PROMPT, references)
    small = load_model(ModelOptions(model=str(tmp_path / "model"), device="cpu"))
    small.enable_model_cpu_offload("cpu")
    assert small.base.offload is not None and small.base.components.codec.slice_size == 2


def test_a_pointer_to_no_model_is_refused(pipe, tmp_path):
    for base in (tmp_path / "none", "owner/name"):
        with pytest.raises(CheckpointError, match="there is no model folder"):
            pipe.save_pretrained(tmp_path / "model", base=base)
    assert not (tmp_path / "model").exists()


def test_a_single_reference_needs_no_list(pipe, tmp_path):
    path = write_video(tmp_path / "a.mp4", pixels(0), fps=8)
    for one in (path, str(path), pixels(0), pipe.encode_references(path, PROMPT)):
        assert torch.equal(generate(pipe, references=one), generate(pipe, references=[one]))


def test_says_what_does_not_fit(pipe):
    with pytest.raises(ConfigError, match="there is no prompt"):
        generate(pipe, [])
    with pytest.raises(ConfigError, match="need one list of references or 2"):
        generate(pipe, [PROMPT] * 2, [[pixels(0)], [pixels(1)], [pixels(2)]])
    with pytest.raises(ConfigError, match="same number of references"):
        generate(pipe, [PROMPT] * 2, [[pixels(0)], [pixels(1), pixels(2)]])
    with pytest.raises(ConfigError, match="without references"):
        generate(pipe, reference_guidance_scale=2.0)
    with pytest.raises(ConfigError, match="scale is -1"):
        generate(pipe, references=[pixels(0)], scale=-1)
    with pytest.raises(VideoError, match="a single frame shows no action"):
        generate(pipe, references=[pixels(0)[:1]])
    with pytest.raises(ConfigError, match="uint8"):
        generate(pipe, references=[pixels(0).int()])
    with pytest.raises(CheckpointError, match="no model folder"):
        AICLPipeline.from_pretrained("nowhere")


def test_half_precision_files_are_float32_on_the_cpu_unless_asked_for(tmp_path):
    tiny_pipeline().to(dtype=torch.float16).save_pretrained(tmp_path / "model")
    loaded = AICLPipeline.from_pretrained(tmp_path / "model")
    assert {loaded.base.components.unet.dtype, next(loaded.prism.parameters()).dtype} == {torch.float32}
    half = AICLPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float16)
    assert half.base.components.unet.dtype == torch.float16


def test_an_adapter_is_sampled_at_the_rate_of_its_training(tmp_path, monkeypatch):
    pipe = tiny_pipeline()
    pipe.base.config.defaults.fps, pipe.base.config.defaults.save_fps = 28, 10  # as VideoCrafter 2
    assert pipe.defaults == pipe.base.config.defaults  # no adapter file yet
    plain = save_adapter_at(pipe, tmp_path / "without.safetensors", None)
    trained = save_adapter_at(pipe, tmp_path / "trained.safetensors", 8.0)
    pipe.load_adapter(plain)
    assert pipe.defaults == pipe.base.config.defaults  # an older file says no rate
    pipe.load_adapter(trained)
    assert (pipe.info.fps, pipe.defaults.fps, pipe.defaults.save_fps) == (8.0, 8, 8)
    told, read = [], []
    conditions, clip = pipe.base.conditions, reference_encoder.read_pixels
    monkeypatch.setattr(pipe.base, "conditions", lambda *a, **k: told.append(k["fps"]) or conditions(*a, **k))
    monkeypatch.setattr(reference_encoder, "read_pixels", lambda *a: read.append(a[-1]) or clip(*a))
    generate(pipe, references=[pixels(0)])
    generate(pipe, references=[pixels(0)], fps=20, reference_fps=5)
    assert told == [8, 20] and read == [8, 5]
    pipe.save_pretrained(tmp_path / "folder")
    assert AICLPipeline.from_pretrained(tmp_path / "folder").defaults.fps == 8
    pipe.remove_adapter()
    assert pipe.defaults.fps == 28


def save_adapter_at(pipe: AICLPipeline, path: Path, fps: float | None) -> Path:
    save_adapter(path, pipe.prism, pipe.integrated, {"step": 1} | ({} if fps is None else {"fps": fps}))
    return path


def test_references_may_be_what_a_pipeline_returns(pipe):
    video = pixels(0)
    expected = generate(pipe, references=[video])
    floats = video.float() / 255
    frames = list(video.numpy())
    for same in (video.numpy(), floats, floats.numpy(), floats.movedim(-1, 1), frames):
        assert torch.equal(generate(pipe, references=[same]), expected)
    with pytest.raises(ConfigError, match=r"as floats must lie in \[0, 1\]"):
        generate(pipe, references=[video.float()])


def test_the_adapter_has_a_scale_for_all_calls(pipe):
    half = generate(pipe, references=[pixels(0)], scale=0.5)
    try:
        pipe.set_adapter_scale(0.5)
        assert torch.equal(generate(pipe, references=[pixels(0)]), half)
        pipe.set_adapter_scale(0)
        assert torch.equal(generate(pipe, references=[pixels(0)]), pipe.base(PROMPT, **QUICK))
    finally:
        pipe.set_adapter_scale(1)


def test_a_model_goes_to_the_hub_and_comes_from_it(pipe, tmp_path, monkeypatch):
    def keep(folder, name, **options):
        Path(folder).rename(tmp_path / "hub")
        return f"https://hub/{name}"

    monkeypatch.setattr(pipeline, "upload", keep)
    monkeypatch.setattr(model_files, "download", lambda name, **options: tmp_path / "hub")
    assert pipe.push_to_hub("someone/tiny") == "https://hub/someone/tiny"
    loaded = AICLPipeline.from_pretrained("someone/tiny", revision="main")
    assert torch.equal(generate(loaded, references=[pixels(0)]), generate(pipe, references=[pixels(0)]))


@pytest.mark.parametrize("bad", ["x", 1.5, object(), [object()], {"a": 1}, True], ids=lambda bad: type(bad).__name__)
def test_wrong_types_give_one_sentence(pipe, bad):
    """Each argument may take some of these; none ends in another error than ours."""
    before = generate(pipe, references=[pixels(0)])
    names = ("seed", "generator", "output_type", "callback_on_step_end", "references", "image", "num_inference_steps")
    for name in (*names, "guidance_scale", "height", "scale", "negative_prompt", "fps", "num_frames", "eta", "sampler"):
        with contextlib.suppress(UserError):
            generate(pipe, **{"num_inference_steps": 1, "references": [pixels(0)], name: bad})
    for call in (pipe.to, pipe.load_adapter, pipe.enable_vae_slicing, pipe.set_adapter_scale, pipe.accelerate):
        with pytest.raises(UserError):
            call(bad if bad != 1.5 else -1.5)
    assert torch.equal(generate(pipe, references=[pixels(0)]), before)  # the adapter is there still


def test_a_longer_video_is_made_of_windows_that_read_the_same_references(pipe):
    references, windows = [pixels(0)], {"window_frames": 4, "window_overlap": 2}
    short = generate(pipe, references=references)
    assert torch.equal(generate(pipe, references=references, **windows), short)
    frames = []
    hook = pipe.integrated.register_forward_hook(lambda module, args, out: frames.append(args[0].shape[2]))
    long = generate(pipe, references=references, num_frames=8, **windows)
    hook.remove()
    assert long.shape[1] == 8 and frames == [4] * 6  # three windows at each of two steps
    assert not torch.equal(long, generate(pipe, num_frames=8, **windows))
    assert torch.equal(
        generate(pipe, references=references, scale=0, num_frames=8, **windows),
        pipe.base(PROMPT, num_frames=8, **windows, **QUICK),
    )
    with pytest.raises(ConfigError, match="window_overlap says what windows share"):
        generate(pipe, window_overlap=2)
    with pytest.raises(ConfigError, match="step_cache keeps features of one window only"):
        generate(pipe, num_frames=8, step_cache=2, **windows)


def test_references_may_be_read_at_some_noise_levels_only(pipe, tmp_path):
    one, two = pixels(0), pixels(1)
    pipe.encode_references(one, PROMPT).save(tmp_path / "one.safetensors")
    half = generate(pipe, references=[one, Reference(two, start=0.5)])
    assert torch.equal(half, generate(pipe, references=[one, two], first_reference_until=0.5))  # a case of both
    alone = generate(pipe, references=[Reference(one, end=0.5)], num_inference_steps=4)
    written = generate(pipe, references=[f"{tmp_path}/one.safetensors@1:0-0.5"], num_inference_steps=4)
    assert (alone.int() - written.int()).abs().max() <= 1
    assert not torch.equal(alone, generate(pipe, references=[one], num_inference_steps=4))
    read = []
    context = pipe.integrated.reference_context(
        torch.zeros(1, 8, 4, 2, 2), (4, 4), [1.0, 2.0], spans=[(500, 999), (0, 699)]
    )
    for t in (999, 600, 100):
        now = context.at(torch.tensor([t]))
        read.append((now.frames, None if now.weights is None else now.weights.tolist()))
    assert read == [((4,), [[1.0]]), ((4, 4), [[1.0, 2.0]]), ((4,), [[2.0]])]
    never = pipe.integrated.reference_context(torch.zeros(1, 4, 4, 2, 2), (4,), [1.0], spans=[(500, 999)])
    assert never.at(torch.tensor([10])).scale == 0
    for bad, message in (
        ({"start": 0.6, "end": 0.4}, "the end comes later"),
        ({"start": -1}, "both are shares, 0 to 1"),
        ({"end": "x"}, "both are shares, 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Reference(one, **bad)
    with pytest.raises(ConfigError, match="both say when"):
        generate(pipe, references=[one, Reference(two, start=0.5)], first_reference_until=0.5)

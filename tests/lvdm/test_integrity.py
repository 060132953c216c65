"""Weights, features and latents that are no numbers, of another type, or not those that were written."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lvdm import config as configs
from lvdm.checkpoints import load_pipeline, load_strict, save_pipeline
from lvdm.checkpoints.folder import read_part, write_part
from lvdm.checkpoints.integrity import check_hash, check_values, save_hashed, tensors_hash
from lvdm.data.cache import CachedClip, ClipCache
from lvdm.data.manifest import read_report
from lvdm.errors import CheckpointError, DataError, SamplingError, UserError, VideoError
from lvdm.finite import FiniteWatch, is_finite
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from tests.lvdm.training_runs import MODEL

NUMBERS = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("number", NUMBERS)
def test_one_bad_number_anywhere_is_found(dtype, number):
    for place in (0, 17, 4999):
        tensor = torch.randn(5000).to(dtype)
        assert is_finite(tensor)
        tensor[place] = number
        assert not is_finite(tensor)
    assert is_finite(torch.empty(0, dtype=dtype)) and is_finite(torch.arange(3))


@pytest.mark.parametrize("number", NUMBERS)
def test_weights_that_are_no_numbers_are_an_error_at_loading(number):
    module = nn.Linear(4, 4)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["bias"][2] = number
    with pytest.raises(CheckpointError, match=r"the file: 1 hold NaN or infinity \(bias\)"):
        load_strict(module, state, "the file")
    assert is_finite(module.bias)


def test_the_same_content_is_written_as_the_same_bytes(tmp_path):
    tensors = {"b": torch.randn(3, 5).T, "a": torch.arange(4, dtype=torch.float16)}
    about = {"format": "pt", "note": 'a "café"\n\t\x01\x7f\u2028/\\', "empty": "", "step": "1", "日本": "{}"}
    for number in range(8):
        items = list(about.items())
        save_hashed(tmp_path / f"{number}.safetensors", tensors, dict(items[number % 5 :] + items[: number % 5]))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        found, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert all(torch.equal(found[name], tensors[name]) for name in tensors) and found.keys() == tensors.keys()
    assert {name: said[name] for name in about} == about and len(said) == 6
    check_hash(found, said, "the file")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_type_are_an_error_at_loading(dtype):
    module = nn.Linear(4, 4)
    state = module.state_dict() | {"weight": torch.zeros(4, 4).to(dtype)}
    with pytest.raises(CheckpointError, match=r"1 of the wrong type \(weight is "):
        load_strict(module, state, "the file")
    for right in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        load_strict(module, {name: value.to(right) for name, value in nn.Linear(4, 4).state_dict().items()}, "the file")
    with pytest.raises(CheckpointError, match="wrong type"):
        check_values({"index": torch.arange(3)}, {"index": torch.zeros(3)}, "the file")
    check_values({"index": torch.arange(3)}, {"index": torch.arange(3, dtype=torch.int32)}, "the file")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = configs.from_mapping(ModelConfig, configs.load(MODEL))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_pipeline(build_components(config), config, folder)
    return folder


def change(path, **changes):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | changes, path, metadata=metadata)


@pytest.mark.parametrize("part", ["unet", "autoencoder", "text_encoder"])
def test_a_model_folder_with_a_bad_number_does_not_load(folder, tmp_path, part):
    copy = shutil.copytree(folder, tmp_path / "model")
    load_pipeline(copy)
    path = copy / f"{part}.safetensors"
    name, value = next((n, v) for n, v in load_file(path).items() if v.ndim > 1)
    change(path, **{name: value.index_fill(0, torch.tensor([0]), torch.nan)})
    with pytest.raises(CheckpointError, match=rf"the entries of {part} .* hold NaN or infinity"):
        load_pipeline(copy)
    change(path, **{name: value.long()})
    with pytest.raises(CheckpointError, match="wrong type"):
        load_pipeline(copy)


INDEXES = {
    "no JSON": "{",
    "NUL bytes": "\0" * 50,
    "too deep": "[" * 100_000,
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "no map": '{"weight_map": null}',
    "a list for a map": '{"weight_map": ["a"]}',
    "an empty map": '{"weight_map": {}}',
    "numbers for files": '{"weight_map": {"a": 1}}',
    "lists for files": '{"weight_map": {"a": ["b"]}}',
    "files elsewhere": '{"weight_map": {"a": "../part.safetensors"}}',
    "absolute files": '{"weight_map": {"a": "/etc/passwd"}}',
    "the folder itself": '{"weight_map": {"a": "."}}',
    "names too long": json.dumps({"weight_map": {"a": "x" * 300}}),
    "NUL in names": json.dumps({"weight_map": {"a": "a\0b"}}),
    "other entries": None,
}


@pytest.mark.parametrize("content", INDEXES)
def test_shard_indexes_of_other_shapes_are_one_sentence(tmp_path, content):
    write_part(tmp_path, "part", {"a": torch.zeros(10), "b": torch.ones(10)}, limit=40)
    assert read_part(tmp_path, "part").keys() == {"a", "b"}
    index = tmp_path / "part.safetensors.index.json"
    text = INDEXES[content]
    if text is None:
        text = index.read_text().replace('"a":', '"c":')
    index.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_part(tmp_path, "part")
    assert "\n" not in str(caught.value) and "again" in str(caught.value)


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    config = configs.from_mapping(ModelConfig, configs.load(MODEL))
    return VideoPipeline(build_components(config).eval(), config)


def break_unet(unet: nn.Module, call: int, number: float) -> None:
    """One number of its predictions is not finite, from its nth call on."""
    calls = []

    def hook(module, arguments, prediction):
        calls.append(1)
        if len(calls) >= call:
            prediction[0, 0, 0, 0, 0] = number

    unet.register_forward_hook(hook)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("sampler", "call"), [("ddim", 3), ("dpmpp_2m", 1), ("ddpm", 5)])
def test_sampling_stops_at_the_step_where_a_number_is_lost(pipe, number, sampler, call):
    break_unet(pipe.components.unet, call, number)
    shown = []
    branches, weights = list(pipe.conditions(["a person"]))[:1], [1.0]
    noise = torch.randn(1, 4, 2, 2, 2)
    with pytest.raises(SamplingError, match=rf"sampling went wrong at step {call} of 5: NaN or infinity"):
        pipe.sample_latents(
            branches,
            weights,
            noise,
            num_inference_steps=5,
            sampler=sampler,
            callback=lambda step, total, t, x: shown.append(step),
        )
    assert shown == list(range(1, call))  # the steps before it, and no further work


def test_decoding_says_when_its_frames_are_no_numbers(pipe):
    with pytest.raises(SamplingError, match="decoding went wrong"):
        pipe.decode(torch.full((1, 4, 2, 2, 2), torch.nan))


def test_a_watch_passes_on_what_is_finite():
    seen = []
    watch = FiniteWatch(lambda step, total, t, x: seen.append((step, total)))
    for step in (1, 2, 3):
        watch(step, 3, 0, torch.zeros(2))
    watch.finish()
    assert seen == [(1, 3), (2, 3), (3, 3)]


class LateEvent:
    """An event of a device that the host is ahead of: it has come once it was asked `after` times, or waited for."""

    def __init__(self, after: int):
        self.left, self.waited = after, False

    def query(self) -> bool:
        self.left -= 1
        return self.waited or self.left < 0

    def synchronize(self) -> None:
        self.waited = True


class LateWatch(FiniteWatch):
    """A watch as on CUDA, whose verdicts come `after` further looks."""

    def __init__(self, after: int):
        super().__init__()
        self.after, self.events = after, []

    def _event(self, x):
        self.events.append(LateEvent(self.after))
        return self.events[-1]


def test_a_watch_that_is_ahead_of_its_device_names_the_step_once_its_verdict_has_come():
    watch, steps = LateWatch(after=2), []
    with pytest.raises(SamplingError, match="at step 2 of 9"):
        for step in range(1, 10):
            steps.append(step)
            watch(step, 9, 0, torch.full((2,), torch.nan if step >= 2 else 0.0))
    assert 2 < steps[-1] < 9  # not at once, and long before the end
    assert not any(event.waited for event in watch.events)

    watch = LateWatch(after=100)
    for step in (1, 2, 3):
        watch(step, 3, 0, torch.full((2,), torch.inf if step == 3 else 0.0))  # nothing is said yet
    with pytest.raises(SamplingError, match="at step 3 of 3"):
        watch.finish()
    assert all(event.waited for event in watch.events)


CLIP = CachedClip(torch.zeros(4, 2, 2, 2), torch.ones(4, 2, 2, 2), 8.0, torch.zeros(16, 16, 3, dtype=torch.uint8))


def test_a_cache_entry_of_another_clip_is_noticed_and_made_anew(tmp_path):
    cache = ClipCache.create(tmp_path, {})
    for key in ("a.mp4", "b.mp4"):
        cache.write_clip(key, 0, CLIP)
        cache.write_text(f"caption of {key}", torch.zeros(77, 4))
    cache._clip_path("b.mp4", 0).replace(cache._clip_path("a.mp4", 0))  # files put back in the wrong place
    with pytest.raises(VideoError, match=r"is the cache entry of b.mp4 \(crop 0\), not of cached crop 0 of a.mp4"):
        cache.read_clip("a.mp4", 0)
    cache._clip_path("a.mp4", 0).replace(cache._clip_path("b.mp4", 0))
    cache.read_clip("b.mp4", 0)
    cache.write_clip("b.mp4", 1, CLIP)
    cache._clip_path("b.mp4", 0).replace(cache._clip_path("b.mp4", 1))  # another crop of the same
    with pytest.raises(VideoError, match=r"not of cached crop 1 of b.mp4"):
        cache.read_clip("b.mp4", 1)
    assert cache.remove_damaged_clip("b.mp4", 1) and not cache.has_clip("b.mp4", 1)
    cache._text_path("caption of b.mp4").replace(cache._text_path("caption of a.mp4"))
    with pytest.raises(VideoError, match=r"is the cache entry of 'caption of b.mp4', not of the caption 'caption of a"):
        cache.read_text("caption of a.mp4")
    assert cache.remove_damaged_text("caption of a.mp4") and not cache.has_text("caption of a.mp4")


def test_cache_entries_that_lack_something_or_are_no_numbers(tmp_path):
    cache = ClipCache.create(tmp_path, {})
    path = cache._clip_path("a.mp4", 0)
    tensors = {"mean": CLIP.mean, "std": CLIP.std, "first_frame": CLIP.first_frame}
    about = {"key": "a.mp4", "variant": "0", "fps": "8.0"}  # as older caches have it

    def write(tensors, about, **more):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=about | {"checksum": tensors_hash(tensors)} | more)

    write(tensors, about)
    assert cache.read_clip("a.mp4", 0).fps == 8
    for bad in (
        lambda: write({"mean": CLIP.mean}, about),
        lambda: write(tensors, about | {"fps": "fast"}),
        lambda: write(tensors, {"key": "a.mp4", "variant": "0"}),
        lambda: write(tensors, {}),
        lambda: write(tensors, about, checksum="0"),
        lambda: save_file(tensors, path),
        lambda: write(tensors | {"mean": CLIP.mean * torch.nan}, about),
    ):
        bad()
        with pytest.raises(VideoError, match="cache entry of"):
            cache.read_clip("a.mp4", 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 40, b"{", b"[]", b"1", b"null", b"[" * 100_000, b"{}", b'{"format": 1}',
     b'{"format": 1, "settings": []}', b'{"format": 1, "settings": "a"}', b'{"format": 99, "settings": {}}',
     b'{"format": [], "settings": {}}', b"\xff\xfe"],
)  # fmt: skip
def test_cache_settings_of_other_shapes_are_one_sentence(tmp_path, content):
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(DataError, match="make"):
        ClipCache(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 40, b"{", b"[]", b"1", b"null", b"{}", b"[" * 100_000, b'{"broken": null}', b'{"broken": 3}',
     b'{"broken": ["a.mp4"]}', b'{"broken": "a.mp4"}', b'{"broken": {"a.mp4": 1}}', b"\xff\xfe", None],
)  # fmt: skip
def test_a_report_of_another_shape_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(DataError, match="report"):
        read_report(tmp_path / "report.json")
    assert issubclass(DataError, UserError)
    (tmp_path / "report.json").write_text('{"broken": {"a.mp4": "is cut short"}}')
    assert read_report(tmp_path / "report.json") == ["a.mp4"]


def test_the_mark_of_a_broken_video_is_of_one_clip(tmp_path):
    """Of another one, or damaged, it is noticed and removed; an older cache's, which is a line of text, is believed."""
    cache = ClipCache.create(tmp_path, {})
    cache.write_broken("a.mp4", 0, "a.mp4: is not a readable video")
    with pytest.raises(VideoError, match=r"^a\.mp4: is not a readable video$"):
        cache.read_clip("a.mp4", 0)
    assert cache.has_clip("a.mp4", 0) and not cache.remove_damaged_clip("a.mp4", 0)
    mark, other = (cache._clip_path("a.mp4", crop).with_suffix(".broken") for crop in (0, 1))
    other.parent.mkdir(parents=True, exist_ok=True)
    mark.replace(other)  # put back in the wrong place
    with pytest.raises(VideoError, match=r"is the mark of a.mp4 \(crop 0\), not of cached crop 1 of a.mp4"):
        cache.read_clip("a.mp4", 1)
    assert cache.remove_damaged_clip("a.mp4", 1) and not cache.has_clip("a.mp4", 1)
    for content in (b"{", b'{"key": "a.mp4"}', b"\xff\xfe", b"\0\0\0", b""):
        other.write_bytes(content)
        with pytest.raises(VideoError, match=r"the mark of a broken video, cached crop 1 of a\.mp4, is damaged"):
            cache.read_clip("a.mp4", 1)
        assert cache.remove_damaged_clip("a.mp4", 1)
    other.write_text("a.mp4: has 3 frames\n", encoding="utf-8")
    with pytest.raises(VideoError, match=r"^a\.mp4: has 3 frames$"):
        cache.read_clip("a.mp4", 1)
    assert not cache.remove_damaged_clip("a.mp4", 1)

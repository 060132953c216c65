"""The networks that measure: what goes into them, what comes out, how files that do not fit are refused."""

import json
import os

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from aicl.evaluation.evaluators import clip as clip_module
from aicl.evaluation.evaluators.classifier import TransformersClassifier
from aicl.evaluation.evaluators.clip import OpenCLIP, TransformersCLIP, activation_of, build_clip, choose_model
from aicl.evaluation.evaluators.i3d import I3D, I3D_FILE
from aicl.evaluation.evaluators.videomae import VideoMAE
from aicl.evaluation.metric import build_evaluators
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.hashing import file_hash, files_hash

transformers = pytest.importorskip("transformers")
OPENAI = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"  # SHA-256 of OpenAI's ViT-B/32
CLIP_CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def frames(count: int = 2, t: int = 4, h: int = 24, w: int = 40) -> torch.Tensor:
    pixels = torch.randint(0, 256, (count, 3, t, h, w), generator=torch.Generator().manual_seed(0))
    return pixels / 127.5 - 1


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory):
    """open_clip's list with a tiny model in both of its activations, and one that has no second."""
    folder = tmp_path_factory.mktemp("clip_configs")
    for name, extra in (("tiny", {}), ("tiny-quickgelu", {"quick_gelu": True}), ("single", {})):
        (folder / f"{name}.json").write_text(json.dumps(CLIP_CONFIG | extra))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of the tiny CLIP that tell the two activations apart, as a pickle of tensors."""
    torch.manual_seed(0)
    model = open_clip.create_model("tiny")
    state = {key: value * 6 if value.ndim > 1 else value for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save(state, path)
    return path


def same(first: OpenCLIP, second: OpenCLIP) -> bool:
    pairs = ((e.observe(frames())["frames"], e.observe_text(["a cat"])["prompt"]) for e in (first, second))
    (a, b), (c, d) = pairs
    return torch.allclose(a, c, atol=1e-5) and torch.allclose(b, d, atol=1e-5)


def test_the_two_activations_give_other_numbers(weights):
    quick, plain = (OpenCLIP("cpu", weights, name) for name in ("tiny-quickgelu", "tiny-gelu"))
    assert (quick.name, plain.name) == ("open_clip tiny-quickgelu", "open_clip tiny")
    assert quick.hash == plain.hash == file_hash(weights)
    assert not same(quick, plain)
    seen = quick.observe(frames())["frames"]
    assert seen.shape == (2, 4, 8) and seen.dtype == torch.float32
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2, 4))
    assert quick.observe_text(["a", "b", "c"])["prompt"].shape == (3, 8)


def test_a_plain_name_is_refused_where_the_file_does_not_say_its_activation(weights):
    with pytest.raises(ConfigError, match=r"tiny-quickgelu for weights of OpenAI.*tiny-gelu for those of LAION"):
        OpenCLIP("cpu", weights, "tiny")


def test_a_torchscript_archive_is_openais_and_means_quickgelu(weights, tmp_path):
    class Published(torch.nn.Module):
        """OpenAI's archives hold half-precision tensors, and three sizes beside them."""

        def __init__(self, state):
            super().__init__()
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(1))
            for name, value in state.items():
                at = self
                *path, last = name.split(".")
                for part in path:
                    if not hasattr(at, part):
                        at.add_module(part, torch.nn.Module())
                    at = getattr(at, part)
                at.register_buffer(last, value.half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    archive = tmp_path / "ViT-tiny.pt"
    state = torch.load(weights, weights_only=True)
    torch.jit.script(Published(state)).save(archive)
    assert activation_of(archive, file_hash(archive)) == "QuickGELU"
    published = OpenCLIP("cpu", archive, "tiny")
    assert published.name == "open_clip tiny-quickgelu"
    half = tmp_path / "half.pt"
    torch.save({key: value.half().float() for key, value in state.items()}, half)
    assert same(published, OpenCLIP("cpu", half, "tiny-quickgelu"))
    with pytest.warns(UserWarning, match="trained with QuickGELU, not GELU"):
        assert OpenCLIP("cpu", archive, "tiny-gelu").name == "open_clip tiny-quickgelu"


def test_open_clips_own_list_and_a_config_beside_the_file_say_the_activation(weights, tmp_path):
    anything = tmp_path / "weights.bin"
    anything.write_bytes(b"no archive")
    assert activation_of(anything, OPENAI) == "QuickGELU"
    assert activation_of(anything, "af8dbd0c" + 56 * "0") == "GELU"  # laion2b_e16 of ViT-B-32
    assert activation_of(anything, 64 * "0") is None
    assert choose_model("ViT-B-32", anything, OPENAI) == "ViT-B-32-quickgelu"
    assert choose_model("single", anything, 64 * "0") == "single"  # there is no second variant to mistake it for
    for quick, activation in ((True, "QuickGELU"), (False, "GELU")):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": quick}}))
        assert activation_of(anything, 64 * "0") == activation
    (tmp_path / "open_clip_config.json").write_text("[1")
    assert activation_of(anything, 64 * "0") is None


def test_frames_are_prepared_as_open_clip_prepares_images(weights):
    evaluator = OpenCLIP("cpu", weights, "tiny-gelu")
    _, _, preprocess = open_clip.create_model_and_transforms("tiny")
    clip = frames(1, 1, 24, 40)
    image = Image.fromarray(((clip[0, :, 0].movedim(0, -1) + 1) * 127.5).round().numpy().astype(np.uint8))
    ours = clip_module.clip_images(clip, evaluator.size, evaluator.mean, evaluator.std)[0]
    assert ours.shape == (3, 32, 32)
    assert (ours - preprocess(image)).abs().mean() < 0.02  # Pillow rounds to 8 bits after resizing


def test_open_clip_never_downloads_and_says_what_is_missing(weights, tmp_path):
    with pytest.raises(ConfigError, match="no model 'ViT-Z'"):
        OpenCLIP("cpu", tmp_path, "ViT-Z")
    with pytest.raises(CheckpointError, match=r"weights of the CLIP model ViT-B-32.*is not there: download them"):
        OpenCLIP("cpu", tmp_path / "missing.pt", "ViT-B-32")
    page = tmp_path / "page.pt"
    page.write_text("<html>")
    with pytest.raises(CheckpointError, match=r"page\.pt does not hold the weights of tiny"):
        OpenCLIP("cpu", page, "tiny-gelu")
    with pytest.raises(CheckpointError, match="does not hold the weights of ViT-B-32"):
        OpenCLIP("cpu", weights, "ViT-B-32-gelu")
    with pytest.raises(ConfigError, match="say with `model` which CLIP this is"):
        build_clip("cpu", weights)


@pytest.fixture(scope="module")
def transformers_clip(tmp_path_factory):
    """A tiny CLIP as a local folder of transformers."""
    folder = tmp_path_factory.mktemp("transformers_clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": 8, "max_position_embeddings": 16, "bos_token_id": 6, "eos_token_id": 7},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    vocabulary = {"c": 0, "a": 1, "t": 2, "c</w>": 3, "a</w>": 4, "t</w>": 5, "<|startoftext|>": 6, "<|endoftext|>": 7}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), unk_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def test_a_clip_of_transformers_says_its_activation_itself(transformers_clip, tmp_path):
    clip = build_clip("cpu", transformers_clip)
    assert isinstance(clip, TransformersCLIP) and clip.name.endswith("quick_gelu")
    assert clip.hash == files_hash(transformers_clip)
    seen, read = clip.observe(frames())["frames"], clip.observe_text(["cat", "a tac"])["prompt"]
    assert seen.shape == (2, 4, 8) and read.shape == (2, 8)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2, 4))
    inputs = clip.tokenizer(["cat", "a tac"], padding=True, return_tensors="pt")
    images = clip_module.clip_images(frames(), 32, clip.mean, clip.std)
    with torch.no_grad():
        output = clip.model(**inputs, pixel_values=images)
    torch.testing.assert_close(read, F.normalize(output.text_embeds, dim=-1))
    torch.testing.assert_close(seen.flatten(0, 1), F.normalize(output.image_embeds, dim=-1))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded as CLIPModel"):
        build_clip("cpu", tmp_path)


class FakeI3D(torch.nn.Module):
    """What is known of the published network's arguments, with the mean colour as its features."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale:
            x = x / 255 * 2 - 1
        if not (resize and return_features):
            x = x * 0
        return x.mean([2, 3, 4])


def test_i3d_gets_what_its_forward_pass_asks_for(tmp_path):
    with pytest.raises(CheckpointError, match=f"{I3D_FILE} .the network of FVD. is not there: get it from https"):
        I3D("cpu", tmp_path)
    torch.jit.script(FakeI3D()).save(tmp_path / I3D_FILE)
    i3d, clips = I3D("cpu", tmp_path), frames(t=10)
    torch.testing.assert_close(i3d.observe(clips)["features"], clips.mean((2, 3, 4)), atol=5e-3, rtol=0)
    assert i3d.hash == file_hash(tmp_path / I3D_FILE) and i3d.min_frames == 10
    for content in (b"<html>", (tmp_path / I3D_FILE).read_bytes()[:300]):
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="no TorchScript file"):
            I3D("cpu", tmp_path / "broken.pt")


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    """A tiny VideoMAE classifier, as a local folder of transformers."""
    folder = tmp_path_factory.mktemp("videomae")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={0: "PlayingGuitar", 1: "Archery"}, label2id={"PlayingGuitar": 0, "Archery": 1},
    )  # fmt: skip
    transformers.VideoMAEForVideoClassification(config).save_pretrained(folder)
    processor = transformers.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def test_one_folder_of_videomae_is_a_classifier_and_features(videomae):
    built = build_evaluators({"classifier": str(videomae), "videomae": {"path": str(videomae)}, "clip": None}, "cpu")
    assert list(built) == ["classifier", "videomae"]
    clips = frames(3, 8)
    features = built["videomae"].observe(clips)["features"]
    assert features.shape == (3, 16) and features.isfinite().all()
    assert not torch.allclose(features[0], features[1], atol=1e-5)
    assert torch.equal(features, built["videomae"].observe(clips[:, :, [0, 2, 5, 7]])["features"])  # spread frames
    classifier = built["classifier"]
    assert classifier.observe(clips)["logits"].shape == (3, 2)
    assert classifier.index(["playing guitar", "archery", "Playing_Guitar"]).tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="no class 'juggling'"):
        classifier.index(["juggling"])
    with pytest.raises(CheckpointError, match="no folder"):
        VideoMAE("cpu", videomae / "missing")


def test_a_truncated_folder_of_transformers_is_one_sentence(videomae, tmp_path):
    for name in os.listdir(videomae):
        content = (videomae / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2] if name.endswith(".safetensors") else content)
    with pytest.raises(CheckpointError, match="cannot be loaded as VideoMAEModel"):
        VideoMAE("cpu", tmp_path)


def test_a_model_that_lacks_weights_is_refused(videomae, tmp_path, capfd):
    """transformers would fill in random ones: an encoder without its classifier has no classes to name."""
    encoder = transformers.VideoMAEModel.from_pretrained(videomae)
    encoder.save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=r"it has no weights for classifier\.bias and 3 others"):
        TransformersClassifier("cpu", tmp_path)
    assert VideoMAE("cpu", tmp_path).observe(frames(1, 8))["features"].shape == (1, 16)
    assert capfd.readouterr().err == ""  # nor does it print bars and reports of its own


def test_a_spec_says_kind_and_options_that_exist(tmp_path):
    with pytest.raises(ConfigError, match="needs the option path"):
        build_evaluators({"i3d": {}}, "cpu")
    with pytest.raises(ConfigError, match="flow"):
        build_evaluators({"flwo": {}}, "cpu")
    with pytest.raises(ConfigError, match="grid"):
        build_evaluators({"tracks": {"gird": 3}}, "cpu")
    with pytest.raises(ConfigError, match="is no videomae but a flow"):
        build_evaluators({"videomae": {"kind": "flow"}}, "cpu")
    assert build_evaluators({"tracks": {"grid": 3}}, "cpu")["tracks"].name == "3x3 points along Lucas-Kanade"

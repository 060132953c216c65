import pytest
import torch
import torch.nn.functional as F
from aicl.evaluation.puppet_set import PuppetData, draw_samples

from aicl.evaluation.accuracy import TransformersClassifier
from aicl.evaluation.features import I3D_FILE, FeatureCache, I3DBackbone, PuppetBackbone, VideoMAEBackbone, extract
from aicl.evaluation.frechet import FeatureStats, frechet_distance
from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier
from aicl.puppets.programs import program_bank
from aicl.puppets.renderer import render
from lvdm.errors import CheckpointError, DataError, VideoError
from lvdm.hashing import file_hash

FRAMES = 8


@pytest.fixture(scope="module")
def backbone() -> PuppetBackbone:
    torch.manual_seed(0)
    config = ClassifierConfig(size=64, frames=FRAMES, width=8, features=12, layers=1, heads=1)
    return PuppetBackbone(PuppetClassifier(config).eval(), "random")


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return render(draw_samples(PuppetData(), 0, 0, 40).targets, program_bank(0, 0), 64, FRAMES)


def blurred(clips: torch.Tensor, kernel: int) -> torch.Tensor:
    flat = F.pad(clips.transpose(1, 2).flatten(0, 1), (kernel // 2,) * 4, mode="replicate")
    return F.avg_pool2d(flat, kernel, stride=1).unflatten(0, (len(clips), -1)).transpose(1, 2)


def noisy(clips: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return (clips + amount * noise).clamp(-1, 1)


def shuffled(clips: torch.Tensor, share: float) -> torch.Tensor:
    """A share of the clips with their frames in another order."""
    order, count = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(3)), round(share * len(clips))
    return torch.cat([clips[:count, :, order], clips[count:]])


@pytest.mark.parametrize(
    ("spoil", "amounts"),
    [(blurred, (1, 5, 11)), (noisy, (0.0, 0.15, 0.5)), (shuffled, (0.0, 0.4, 1.0))],
    ids=["blur", "noise", "shuffled frames"],
)
def test_the_distance_rises_with_what_spoils_a_video(backbone, clips, spoil, amounts):
    real = FeatureStats.of(backbone(clips))
    distances = [frechet_distance(FeatureStats.of(backbone(spoil(clips, amount))), real) for amount in amounts]
    assert distances[0] < 1e-6 < distances[1] < distances[2], distances


def test_batches_give_what_all_at_once_gives(backbone, clips):
    torch.testing.assert_close(extract(backbone, clips.split(17)), backbone(clips), rtol=1e-4, atol=1e-5)


def test_clips_that_are_short_or_unequal_are_refused(backbone):
    class Any:
        name, dim, min_frames = "any", 1, 4

        def __call__(self, frames):
            return frames.mean((1, 2, 3, 4))[:, None]

    with pytest.raises(VideoError, match="4 frames or more, got 3"):
        extract(Any(), [torch.zeros(1, 3, 3, 8, 8)])
    unequal = [torch.zeros(1, 3, t, 8, 8) for t in (4, 5)]
    with pytest.raises(VideoError, match="4 and 5 frames"):
        extract(Any(), unequal)
    assert extract(Any(), unequal, allow_unequal=True).shape == (2, 1)


def test_the_cache_goes_by_content_and_by_network(backbone, clips, tmp_path):
    files = [tmp_path / name for name in ("a", "b", "copy of a")]
    for file, content in zip(files, (b"0", b"1", b"0")):
        file.write_bytes(content)
    read = []

    def reader(path):
        read.append(path.name)
        return clips[int(path.read_bytes())]

    cache = FeatureCache(tmp_path / "cache", backbone, "all frames")
    first = cache.features(files, reader, batch_size=1)
    assert read == ["copy of a", "b"]
    torch.testing.assert_close(first, backbone(clips[[0, 1, 0]]), rtol=1e-4, atol=1e-5)
    assert torch.equal(cache.features(files[::-1], reader), first.flip(0)) and len(read) == 2

    assert [file.read_bytes() for file in files] == [b"0", b"1", b"0"]

    cache.path(file_hash(files[0])).write_bytes(b"broken")
    assert torch.equal(cache.features(files, reader), first) and read[2:] == ["copy of a"]
    for other in (FeatureCache(tmp_path / "cache", backbone, "every second frame"), _other_weights(backbone, tmp_path)):
        before = len(read)
        other.features(files[:1], reader)
        assert len(read) == before + 1


def _other_weights(backbone, folder):
    return FeatureCache(folder / "cache", PuppetBackbone(backbone.classifier, "other weights"), "all frames")


class FakeI3D(torch.nn.Module):
    """What is known of the published network's arguments, with the mean colour as its features."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale:
            x = x / 255 * 2 - 1
        if not (resize and return_features):
            x = x * 0
        return x.mean([2, 3, 4])


def test_i3d_gets_what_its_forward_pass_asks_for(tmp_path, clips):
    with pytest.raises(CheckpointError, match=f"{I3D_FILE} is not there: get it from https"):
        I3DBackbone(tmp_path)
    torch.jit.script(FakeI3D()).save(tmp_path / I3D_FILE)
    i3d = I3DBackbone(tmp_path)
    torch.testing.assert_close(i3d(clips[:2]), clips[:2].mean((2, 3, 4)), atol=5e-3, rtol=0)
    assert len(i3d.hash) == 64
    (tmp_path / "page.pt").write_text("<html>")
    with pytest.raises(CheckpointError, match="no TorchScript file"):
        I3DBackbone(tmp_path / "page.pt")


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    """A tiny VideoMAE classifier, as a local folder of transformers."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("videomae")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={0: "PlayingGuitar", 1: "Archery"}, label2id={"PlayingGuitar": 0, "Archery": 1},
    )  # fmt: skip
    transformers.VideoMAEForVideoClassification(config).save_pretrained(folder)
    transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def test_videomae_features(videomae, clips):
    network = VideoMAEBackbone(videomae)
    features = network(clips[:3])
    assert features.shape == (3, 16) and features.isfinite().all()
    assert not torch.allclose(features[0], features[1], atol=1e-5)
    with pytest.raises(CheckpointError, match="no folder"):
        VideoMAEBackbone(videomae / "missing")


def test_a_transformers_classifier_knows_its_classes_by_any_spelling(videomae, clips):
    classifier = TransformersClassifier(videomae)
    assert classifier.scores(clips[:3]).shape == (3, 2)
    assert classifier.index(["playing guitar", "archery", "Playing_Guitar"]).tolist() == [0, 1, 0]
    with pytest.raises(DataError, match="no class 'juggling'"):
        classifier.index(["juggling"])

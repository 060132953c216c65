import pytest
import torch

from aicl.evaluation.accuracy import top1
from aicl.evaluation.appearance import appearance_hits, leaks, similarity_margin
from aicl.evaluation.clip_scores import (
    STATIC_FC,
    OpenCLIPScorer,
    PuppetCLIPScorer,
    clip_consistency,
    frame_consistency,
)
from aicl.puppets.clip import CLIPConfig, PuppetCLIP
from lvdm.errors import CheckpointError, ConfigError, DataError


def at(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], -1)


def test_clip_consistency_is_the_mean_cosine():
    scores = clip_consistency(at(0, 90), torch.stack([7 * at(0, 60), at(90, 270)]))  # lengths do not matter
    torch.testing.assert_close(scores, torch.tensor([75.0, 0.0], dtype=torch.float64))


def test_frame_consistency_of_consecutive_and_of_all_pairs():
    frames = at(0, 60, 120)[None] * 3
    assert frame_consistency(frames).item() == pytest.approx(50.0)
    assert frame_consistency(frames, "all").item() == pytest.approx(100 * (0.5 + 0.5 - 0.5) / 3)
    with pytest.raises(DataError, match="two frames"):
        frame_consistency(frames[:, :1])


def test_a_static_video_has_frame_consistency_100():
    torch.manual_seed(0)
    clip = PuppetCLIP(CLIPConfig(size=16, width=32, vision_layers=1, text_layers=1, embed_dim=8))
    scorer = PuppetCLIPScorer(clip, "none")
    moving = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    static = moving[:, :, :1].expand(-1, -1, 4, -1, -1)
    for pairs in ("consecutive", "all"):
        torch.testing.assert_close(
            frame_consistency(scorer.encode_frames(static), pairs), torch.full((2,), STATIC_FC).double()
        )
        assert (frame_consistency(scorer.encode_frames(moving), pairs) < STATIC_FC - 1e-3).all()
    assert scorer.encode_text(["a person waves"]).shape == (1, 8)


def test_open_clip_never_downloads(tmp_path):
    with pytest.raises(ConfigError, match="no model 'ViT-Z'"):
        OpenCLIPScorer("ViT-Z", tmp_path)
    with pytest.raises(CheckpointError, match="download the weights of ViT-B-32"):
        OpenCLIPScorer("ViT-B-32", tmp_path / "missing.pt")


def test_top1_and_forced_choice():
    scores = torch.tensor([[0.0, 3.0, 2.0], [0.0, 3.0, 2.0], [5.0, 1.0, 0.0]])
    labels = torch.tensor([1, 2, 2])
    assert top1(scores, labels).tolist() == [True, False, False]
    assert top1(scores, torch.tensor([2, 2, 0]), among=(2, 0)).tolist() == [True, True, True]
    with pytest.raises(DataError, match="not among"):
        top1(scores, labels, among=(0, 2))


def test_appearance_and_leakage_count_what_they_say():
    seen = torch.tensor([[0, 1, 2], [3, 3, 3]])  # what the classifier sees of two videos
    logits = torch.nn.functional.one_hot(seen, 8).float()
    prompt = torch.tensor([[0, 1, 5], [3, 0, 0]])
    reference = torch.tensor([[[0, 4, 2]], [[1, 3, 6]]])
    assert appearance_hits(logits, prompt).tolist() == [[True, True, False], [True, False, False]]
    # the first video's first look cannot leak: prompt and reference share it
    assert leaks(logits, prompt, reference).tolist() == [False, True, False, True, False]
    two = torch.cat([reference, torch.tensor([[[7, 1, 0]], [[7, 7, 3]]])], 1)
    assert leaks(logits, prompt, two).tolist() == [True, False, True, True]


def test_similarity_margin_finds_copies():
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(6, 5, 32, generator=generator)
    own, others = similarity_margin(references * 2, references.flip(1))  # the same frames in another order
    torch.testing.assert_close(own, torch.full((6,), 100.0).double())
    assert (others < 60).all()
    unrelated = torch.randn(6, 5, 32, generator=generator)
    own, others = similarity_margin(unrelated, references)
    assert abs(float((own - others).mean())) < 20
    with pytest.raises(DataError, match="two or more"):
        similarity_margin(references[:1], references[:1])

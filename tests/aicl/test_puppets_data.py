"""Batches and files of the puppet world, the measuring evaluators, and trainings that use them."""

import csv
import math

import numpy as np
import pytest
import torch

from aicl.pseudo_words import gerund
from aicl.puppets.actions import SEEN_INDICES, UNSEEN_INDICES
from aicl.puppets.captions import GENERIC, parse, unseen_words
from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier, soften
from aicl.puppets.clip import CLIPConfig, PuppetCLIP, contrastive_losses
from aicl.puppets.data import NameShares, PuppetConfig, PuppetDataModule, ReferenceShares, draw_batch
from aicl.puppets.evaluators import load_evaluator, save_evaluator
from aicl.puppets.export import write_clips
from aicl.puppets.programs import FIRST_RANDOM
from aicl.puppets.scene_parameters import CAMERA_FIELDS, COLOURS, FIELD, MOTION_FIELDS, looks
from lvdm.data import collate, read_folder
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.video import load_clip, probe, to_pixels, write_video

PAIRS = PuppetConfig(size=16, frames=2, programs=32, references=2, paired=0.5, same_camera=0.5)


def rows(batch, name="scene_parameters"):
    return batch[name].numpy()


class TestBatches:
    def test_a_sample_is_a_function_of_its_number(self):
        batch = draw_batch(PAIRS, 3, np.arange(20))
        other = draw_batch(PAIRS, 3, np.array([17, 4]))
        for position, number in enumerate((17, 4)):
            for name in ("scene_parameters", "reference_scene_parameters", "timestep_u", "noise_seed"):
                assert torch.equal(other[name][position], batch[name][number])
            assert other["caption"][position] == batch["caption"][number]
            assert other["reference_captions"][position] == batch["reference_captions"][number]
        assert draw_batch(PAIRS, 4, np.array([17]))["caption"] != [batch["caption"][17]]

    def test_one_item_and_a_batch_are_the_same(self):
        dataset = PuppetDataModule(PAIRS, 2, seed=3).dataset
        one, whole = collate([dataset[5], dataset[6]]), dataset.__getitems__([5, 6])
        assert one.keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(one[name], value) if torch.is_tensor(value) else one[name] == value

    def test_unseen_actions_stay_unseen(self):
        batch = draw_batch(PuppetConfig(references=1, free_captions=0.5), 0, np.arange(3000))
        programs = rows(batch)[:, FIELD["program"]].astype(int)
        assert not set(programs) & set(UNSEEN_INDICES)
        assert set(programs[programs < FIRST_RANDOM]) == set(SEEN_INDICES)
        spoken = {word for text in batch["caption"] for word in text.replace("-", " ").split()}
        assert not spoken & unseen_words()
        assert (programs >= FIRST_RANDOM).mean() == pytest.approx(0.4, abs=0.04)

    def test_pairs_share_the_motion_and_nothing_else(self):
        batch = draw_batch(PuppetConfig(references=1, paired=0.5, same_camera=0.5), 1, np.arange(2000))
        target, reference = rows(batch), rows(batch, "reference_scene_parameters")[:, 0]
        assert np.array_equal(target[:, FIELD["program"]], reference[:, FIELD["program"]])
        paired = target[:, FIELD["phase"]] == reference[:, FIELD["phase"]]
        assert paired.mean() == pytest.approx(0.5, abs=0.05)
        assert np.array_equal(target[paired][:, MOTION_FIELDS], reference[paired][:, MOTION_FIELDS])
        camera = (target[:, CAMERA_FIELDS] == reference[:, CAMERA_FIELDS]).all(1)
        assert camera[paired].mean() == pytest.approx(0.5, abs=0.06) and not camera[~paired].any()
        same_looks = (
            (looks(batch["scene_parameters"]) == looks(batch["reference_scene_parameters"][:, 0])).double().mean()
        )
        assert same_looks == pytest.approx(1 / 8, abs=0.02)

    def test_names_of_actions_can_be_hidden(self):
        config = PuppetConfig(program_share=0.0, names=NameShares(0.0, 1.0, 1.0), free_captions=0.0)
        phrases = [parse(text).phrase for text in draw_batch(config, 0, np.arange(300))["caption"]]
        generic = sum(phrase in GENERIC for phrase in phrases)
        assert generic == pytest.approx(150, abs=35)
        assert not {gerund(name) for name in ("wave a hand", "clap", "squat")} & set(phrases)

    @pytest.mark.parametrize("kind", ["own", "prompt", "bare"])
    def test_reference_captions(self, kind):
        shares = {"own": 0.0, "prompt": 0.0, "bare": 0.0, kind: 1.0}
        config = PuppetConfig(
            references=1, reference_captions=ReferenceShares(**shares), bare_captions=0.0, free_captions=0.0
        )
        batch = draw_batch(config, 0, np.arange(30))
        for prompt, (text,), row in zip(
            batch["caption"], batch["reference_captions"], batch["reference_scene_parameters"]
        ):
            said = parse(text)
            assert said.phrase == parse(prompt).phrase
            if kind == "prompt":
                assert text == prompt
            elif kind == "bare":
                assert said.shirt is None and said.background is None
            else:
                assert said.shirt == list(COLOURS)[int(row[0, FIELD["shirt"]])]

    def test_in_turn(self):
        batch = draw_batch(PuppetConfig(actions="unseen", in_turn=True), 0, np.arange(25))
        assert rows(batch)[:, FIELD["program"]].astype(int).tolist() == [UNSEEN_INDICES[n % 10] for n in range(25)]

    def test_prepare_renders(self):
        data = PuppetDataModule(PAIRS, 3, seed=2)
        batch = data.prepare(next(iter(PuppetDataModule(PAIRS, 3, seed=2).train_dataloader())))
        assert batch["number"].tolist() == [0, 1, 2]
        assert batch["frames"].shape == (3, 3, 2, 16, 16) and batch["references"].shape == (3, 2, 3, 2, 16, 16)
        assert batch["looks"].shape == (3, 3) and batch["action"].shape == (3,)
        assert data.prepare(batch) is batch
        again = data.prepare(draw_batch(PAIRS, 2, np.array([1])))
        assert torch.equal(again["frames"], batch["frames"][1:2])
        assert torch.equal(again["references"], batch["references"][1:2])

    def test_a_share_out_of_range_is_refused(self):
        with pytest.raises(ConfigError, match=r"data\.paired = 1\.5"):
            PuppetConfig(paired=1.5)
        with pytest.raises(ConfigError, match=r"data\.programs"):
            PuppetConfig(programs=0)
        with pytest.raises(ConfigError, match="says which references do not belong"):
            PuppetConfig(wrong_share=0.5)
        for shares in (NameShares(0.0, 0.0, 0.0), NameShares(1.0, -0.5, 0.0), NameShares(float("nan"))):
            with pytest.raises(ConfigError, match=r"data\.names are shares"):
                PuppetConfig(names=shares)


class TestFiles:
    def test_clips_are_read_back_by_the_folder_reader(self, tmp_path):
        config = PuppetConfig(
            size=64, actions="unseen", in_turn=True, free_captions=0.0, bare_captions=0.0, patterns=0.0
        )
        manifest = write_clips(tmp_path / "set", config, 3, seed=1, preview=tmp_path / "sheet.png")
        records = read_folder(tmp_path / "set", manifest)
        assert [record.label for record in records] == ["hammer", "ladder", "jacks"]
        batch = PuppetDataModule(config, 3, seed=1).prepare(draw_batch(config, 1, np.arange(3)))
        assert [record.caption for record in records] == batch["caption"]
        for record, frames in zip(records, batch["frames"]):
            info = probe(record.path)
            assert (info.num_frames, info.fps, info.width, info.height) == (16, 8.0, 64, 64)
            error = (load_clip(record.path, 16, (64, 64)) - frames).square().mean()
            assert 10 * math.log10(4 / error) > 24  # colours are stored at half the resolution
        assert (tmp_path / "sheet.png").stat().st_size > 1000
        with pytest.raises(DataError, match="exists already"):
            write_clips(tmp_path / "set", config, 3)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "holiday.mp4").write_bytes(b"a film of somebody")
        with pytest.raises(DataError, match=r"mine holds holiday\.mp4, which is none of these clips"):
            write_clips(tmp_path / "mine", config, 3)

    def test_the_same_arguments_write_the_same_files(self, tmp_path):
        config = PuppetConfig(size=16, frames=4, programs=8)
        first, second = (write_clips(tmp_path / name, config, 4) for name in ("a", "b"))
        assert list(csv.reader(first.open())) == list(csv.reader(second.open()))
        for number in range(4):
            name = f"clip_{number:05d}.mp4"
            assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()

    def test_the_same_pixels_write_the_same_file_whatever_memory_held_before(self, tmp_path):
        batch = PuppetDataModule(config := PuppetConfig(), 8, 7).prepare(draw_batch(config, 7, np.arange(8)))
        clip, held, random = to_pixels(batch["frames"])[1], [], np.random.default_rng(0)
        files = set()
        for _ in range(60):
            files.add(write_video(tmp_path / "a.mp4", clip, 8, overwrite=True).read_bytes())
            held = [*held[-20:], random.integers(0, 255, random.integers(1_000, 200_000), np.uint8)]
        assert len(files) == 1


class TestEvaluators:
    def test_the_classifier_reads_clips(self):
        torch.manual_seed(0)
        classifier = PuppetClassifier()
        assert 3e6 < sum(parameter.numel() for parameter in classifier.parameters()) < 4e6
        frames = torch.rand(3, 3, 16, 64, 64) * 2 - 1
        with torch.no_grad():
            prediction = classifier(frames)
        assert (
            prediction.action.shape == (3, 78)
            and prediction.looks.shape == (3, 3, 8)
            and prediction.features.shape == (3, 256)
        )
        still = frames.clone()
        still[0] = frames[0, :, :1]
        with torch.no_grad():
            assert not torch.allclose(classifier(still).features[0], prediction.features[0])
        with pytest.raises(ConfigError, match="resample"):
            classifier(frames[:, :, :8])

    def test_it_learns_a_tiny_world(self):
        torch.manual_seed(0)
        config = PuppetConfig(size=64, frames=4, actions="all", program_share=0.0, patterns=0.0)
        batch = PuppetDataModule(config, 12).prepare(draw_batch(config, 0, np.arange(12)))
        classifier = PuppetClassifier(ClassifierConfig(frames=4, width=8, features=32))
        optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
        losses = []
        for _ in range(15):
            prediction = classifier(batch["frames"])
            loss = torch.nn.functional.cross_entropy(prediction.action, batch["action"])
            loss = loss + torch.nn.functional.cross_entropy(prediction.looks.transpose(1, 2), batch["looks"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.75 * losses[0]

    def test_softening_blurs_what_it_is_told_to(self):
        frames = torch.rand(2, 3, 2, 32, 32) * 2 - 1
        soft = soften(frames, torch.tensor([0.0, 1.0]), torch.zeros_like(frames))
        assert torch.equal(soft[0], frames[0])
        assert soft[1].std() < 0.7 * frames[1].std()

    def test_clip_matches_captions_and_frames(self):
        torch.manual_seed(0)
        clip = PuppetCLIP(CLIPConfig(size=32, width=32, vision_layers=1, text_layers=1, embed_dim=16))
        text = clip.encode_text(["a person is waving a hand", "a person is hammering", "a person is waving a hand"])
        frames = clip.encode_frames(torch.rand(3, 3, 2, 32, 32))
        assert text.shape == (3, 16) and frames.shape == (3, 2, 16)
        torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(text[0], text[2])
        assert not torch.allclose(text[0], text[1], atol=1e-3)
        scale = torch.tensor(math.log(50.0))
        right = torch.eye(3, 16)
        assert contrastive_losses(right, right[:, None].expand(-1, 2, -1), scale).max() < 1e-6
        wrong = contrastive_losses(right, right.roll(1, 0)[:, None], scale)
        torch.testing.assert_close(wrong, torch.full((3,), 50.0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_files_bring_the_same_evaluator_back(self, tmp_path, dtype):
        torch.manual_seed(0)
        classifier = PuppetClassifier(ClassifierConfig(size=64, frames=2, width=8, features=32)).eval()
        save_evaluator(tmp_path, "classifier", classifier, dtype)
        loaded = load_evaluator(tmp_path, "classifier")
        assert loaded.config == classifier.config and loaded.position.dtype == torch.float32
        frames = torch.rand(2, 3, 2, 64, 64)
        torch.testing.assert_close(
            loaded(frames).action,
            classifier(frames).action,
            **({} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}),
        )
        with pytest.raises(CheckpointError, match="has no clip"):
            load_evaluator(tmp_path, "clip")
        (tmp_path / "classifier.safetensors").write_bytes(b"broken")
        with pytest.raises(CheckpointError, match="does not hold"):
            load_evaluator(tmp_path, "classifier")

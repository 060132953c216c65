"""What the base model knows of a prompt's action by itself, and references that are left out because of it."""

import json
from pathlib import Path

import pytest
import torch

from aicl import AICLPipeline
from aicl.adapter import save_adapter
from aicl.evaluation import generate
from aicl.evaluation.generate import make
from aicl.evaluation.row import Row
from aicl.evaluation.source import Source
from aicl.known_actions import KnownAction, known_actions
from aicl.model_files import fetch_model_files
from aicl.puppets.benchmark import PuppetBenchmark
from aicl.sampling_guard import leave_out_needless
from aicl.sampling_jobs import Job
from aicl.verbs import generalised
from lvdm.errors import ConfigError
from tests.aicl.test_pipeline import tiny_pipeline
from tests.aicl.test_sample_script import call  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
PUPPETS = ROOT / "checkpoints" / "puppets"
CLIP = PUPPETS / "examples" / "clip_00000.mp4"
KNOWN = "a person in a red shirt and blue trousers is waving both arms overhead in front of a yellow background"
NEW = "a person in a red shirt and blue trousers is hammering in front of a yellow background"


@pytest.fixture(scope="module")
def pipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where its words are
        return AICLPipeline.from_pretrained(PUPPETS)


@pytest.mark.parametrize(
    ("caption", "general"),
    [
        ("A man is riding his bicycle while a dog runs", "a man is moving while a dog moves"),
        ("a woman throws balls quickly at a wall", "a woman moves quickly at a wall"),
        ("Kids play guitar, and do push-ups.", "kids move, and move."),
        ("someone picked up a box", "someone moved up a box"),
        ("she is not dancing but he walks", "she is not dancing but he moves"),
        ("as the crowd cheers a man in a green shirt plays the violin",
         "as the crowd moves a man in a green shirt moves"),
        ("a red robot", None),
    ],
)  # fmt: skip
def test_a_general_word_takes_the_place_of_each_action_and_of_what_it_is_done_to(caption, general):
    assert generalised(caption) == general


def test_words_that_the_base_model_learnt_change_its_prediction_and_others_do_not(pipe):
    known, new, none = known_actions(pipe, [KNOWN, NEW, "a red shirt"])
    assert known.effect > 0.3 and known.is_known() and not known.is_known(limit=0.9)
    assert 0 < new.effect < 0.015 and not new.is_known()
    assert none.general is None and none.effect == 0 and not none.is_known()
    [given] = known_actions(pipe, [NEW], [KNOWN])  # another text to compare with
    assert given.general == KNOWN and given.is_known()
    with pytest.raises(ConfigError, match="1 general prompts were given for 2 prompts"):
        known_actions(pipe, [KNOWN, NEW], [KNOWN])


def test_a_base_model_that_is_told_a_frame_rate_is_asked_at_that_of_the_call(tmp_path, monkeypatch):
    pipe, told = tiny_pipeline("tiny_videocrafter"), []
    own = pipe.base.config.defaults.fps
    conditions = pipe.base.conditions

    def listened(*given, fps, **more):
        told.append(fps)
        return conditions(*given, fps=fps, **more)

    monkeypatch.setattr(pipe.base, "conditions", listened)
    known_actions(pipe, ["a dog runs"])
    save_adapter(tmp_path / "adapter.safetensors", pipe.prism, pipe.integrated, {"fps": own + 3})
    pipe.load_adapter(tmp_path / "adapter.safetensors")
    known_actions(pipe, ["a dog runs"])
    jobs = [Job(prompt="a dog runs", references=[CLIP], reference_guard=0.5, fps=fps) for fps in (None, own + 5, None)]
    leave_out_needless(jobs, pipe)
    assert told == [own] * 2 + [own + 3] * 4 + [own + 5] * 2


@pytest.mark.filterwarnings("ignore:this model does not know the word", "ignore:reference .* is unlike the clips")
def test_sampling_leaves_out_the_references_of_known_actions_alone(call):  # noqa: F811
    for name in ("checkpoints", "configs"):
        Path(name).symlink_to(ROOT / name)
    quick = ("--device", "cpu", "--steps", 1, "--num-frames", 4)
    references = ("--references", CLIP, "--scale", 0.9)
    Path("jobs.txt").write_text(f"{KNOWN}\n{NEW}\na red shirt in front of a wall\n")
    guarded = ("--reference-guard", 0.04, "--out", "guarded")
    with pytest.warns(UserWarning, match="names no action that is found"):
        code, out, _ = call("sample.py", "--prompts-file", "jobs.txt", *quick, *references, *guarded)
    assert code == 0 and out.count("its references are left out") == out.count("its references are read") == 1
    jobs = [json.loads(Path(f"guarded/{number:05d}.json").read_text())["job"] for number in (1, 2, 3)]
    assert [len(job["references"]) for job in jobs] == [0, 1, 1]
    assert jobs[0]["left_out"] == [str(CLIP)] and jobs[1]["left_out"] == []
    assert call("sample.py", "--prompt", KNOWN, *quick, "--out", "base.mp4")[0] == 0
    assert Path("base.mp4").read_bytes() == Path("guarded/00001.mp4").read_bytes()
    assert call("sample.py", "--repeat", "guarded/00001.json", "--out", "again.mp4")[0] == 0
    assert Path("again.mp4").read_bytes() == Path("base.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--reference-guard", "0.04"), "reference_guard decides whether references are read"),
        (("--reference-guard", "0", "--references", CLIP), "reference_guard"),
        (("--general-prompt", "a person", "--references", CLIP), "general_prompt is what reference_guard compares"),
    ],
)
def test_options_that_do_not_go_together(call, arguments, sentence):  # noqa: F811
    code, _, err = call("sample.py", "--model", PUPPETS, "--prompt", KNOWN, *arguments)
    assert code == 2 and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("model", ["tiny_videocrafter", "tiny_videocrafter_i2v"])
def test_a_guarded_row_has_the_videos_of_the_two_rows_that_it_is_made_of(model, tmp_path, monkeypatch):
    pipe, read = tiny_pipeline(model), []
    pipe.guidance_scale = 2.0  # with references, where the base model has another
    pipe.save_pretrained(tmp_path / "tiny")
    files = fetch_model_files(tmp_path / "tiny")
    benchmark = PuppetBenchmark("cpu", "seen", size=32, frames=4)
    samples = benchmark.samples(0, 0, 3)
    monkeypatch.setattr(generate, "known_actions", lambda pipe, prompts, image: [*map(known, prompts)])

    def known(prompt):
        return KnownAction(prompt, "a person is moving", 0.1 if prompt == samples[1].prompt else 0.01)

    reading = generate.shown_pixels
    monkeypatch.setattr(generate, "shown_pixels", lambda *given: read.extend(given[2]) or reading(*given))

    def videos(**row):
        read.clear()
        source = Source(Row("row", model="lvdm", num_inference_steps=2, **row), files, torch.float32)
        return make(pipe, source, benchmark, samples).int()

    shown = {"adapter": "lvdm", "references": 1, "wrong": True}
    plain, wrong, guarded = videos(), videos(**shown), videos(**shown, reference_guard=0.04)
    assert read == ([sample.target for sample in samples] if pipe.base.takes_image else [])  # once
    assert ((plain - wrong).abs().flatten(1).float().mean(1) > 1).all()
    wanted = torch.stack([wrong[0], plain[1], wrong[2]])
    assert (guarded - wanted).abs().max() <= 1
    assert torch.equal(videos(**shown, reference_guard=0.2), wrong)
    with pytest.raises(ConfigError, match="reference_guard is a number above 0, for a row with references"):
        Row("row", model="lvdm", reference_guard=0.04)

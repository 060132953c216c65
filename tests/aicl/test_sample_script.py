"""`aicl sample` and `aicl index`, as they are called through their scripts."""

import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from aicl.reference_retrieval import load_library
from lvdm.video import probe, write_video
from tests.aicl.test_pipeline import pixels, tiny_pipeline

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROMPT = "a red person walks"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a script in an empty folder that has the videos a.mp4 and b.mp4: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        write_video(tmp_path / f"{name}.mp4", pixels(number, frames=8), fps=8)

    def run(script: str, *arguments: object):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return (stop.value.code, *capsys.readouterr())

    return run


def sample(call, model, *arguments):
    return call("sample.py", "--model", model, "--device", "cpu", "--steps", 2, *arguments)


def frames(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_the_line_of_a_job_says_how_many_steps_are_taken(call, model):
    code, out, err = sample(call, model, "--prompt", PROMPT, "--refs", "a.mp4", "--steps", 6, "--out", "out.mp4")
    assert code == 0 and ", 7 steps of ddim (the model's timesteps for 6), guidance 4.0" in out and " 0/7 " in err
    assert json.loads(Path("out.json").read_text())["job"]["num_inference_steps"] == 6  # makes the same again


def test_a_video_its_record_and_its_comparison(call, model):
    code, out, _ = sample(
        call, model, "--prompt", PROMPT, "--refs", "a.mp4", "b.mp4", "--compare", "--scale", 0.5, "--out", "out.mp4"
    )
    assert code == 0 and "wrote out.mp4, out-compare.mp4, out-compare.png\n" in out
    assert "beside it the base model's own video from the same noise, 2 steps of ddim, guidance 4.0\n" in out
    assert f"'{PROMPT}', 4 frames of 32x32, 2 steps of ddim, guidance 4.0, seed 0, references a.mp4, b.mp4 at" in out
    assert probe("out.mp4").num_frames == 4
    compared = probe("out-compare.mp4")
    assert compared.width >= 4 * 32 and compared.height > 32  # two references, base and ours, under labels
    sheet = Image.open("out-compare.png")  # the same four, as rows of 4 frames
    assert sheet.width >= 4 * 32 and sheet.height >= 4 * (32 + 14)
    record = json.loads(Path("out.json").read_text())
    job = record["job"]
    assert [reference["video"] for reference in job["references"]] == ["a.mp4", "b.mp4"]
    assert (job["scale"], job["guidance_scale"], job["num_inference_steps"], job["height"]) == (0.5, 4.0, 2, 32)
    assert set(record["seconds"]) >= {"prism", "first_step", "sampling"}


def test_nothing_is_overwritten_unasked(call, model):
    command = ("--prompt", PROMPT, "--num-samples", 2, "--out", "out.gif")
    assert sample(call, model, *command)[0] == 0
    code, _, err = sample(call, model, *command, "--seed", 1)
    assert code == 2 and "out-seed1.gif exists already" in err and err.count("\n") == 1
    Path("out-seed1.json").unlink()  # an interruption came before it was written
    before, cut = Path("out-seed0.gif").stat().st_mtime_ns, Path("out-seed1.gif").stat().st_mtime_ns
    code, out, _ = sample(call, model, *command, "--skip-existing", "--num-samples", 3)
    assert code == 0 and "wrote out-seed1.gif" in out and "wrote out-seed2.gif" in out and "seed0" not in out
    assert Path("out-seed0.gif").stat().st_mtime_ns == before and Path("out-seed1.gif").stat().st_mtime_ns > cut
    code, out, _ = sample(call, model, *command, "--skip-existing")
    assert (code, out) == (0, "all of these videos are there already\n")
    before = Path("out-seed0.gif").read_bytes()
    assert sample(call, model, *command, "--overwrite", "--refs", "a.mp4")[0] == 0
    assert Path("out-seed0.gif").read_bytes() != before


def test_what_a_job_reads_and_other_folders_are_never_replaced(call, model):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("precious")
    for out, message in (("a.mp4", "a.mp4 is read by the job"), ("mine", "mine is a folder of something else")):
        code, _, err = sample(call, model, "--prompt", PROMPT, "--refs", "a.mp4", "--out", out, "--overwrite")
        assert code == 2 and message in err and err.count("\n") == 1
    assert probe("a.mp4").num_frames == 8 and Path("mine/notes.txt").read_text() == "precious"


def test_options_that_would_do_nothing_are_refused(call, model):
    for given, message in (
        (("--scale", 0.5), "--scale is the strength of references, and none is given: add --references"),
        (("--first-reference-until", 0.5), "--first-reference-until says when"),
        (("--reference-fps", 4), "--reference-fps is the rate"),
        (("--refs", "a.mp4", "--offload"), "--offload frees the memory of a GPU, and the model runs on a CPU"),
        (("--refs", "a.mp4", "--compile", "graphs"), "--compile graphs is for GPUs, and the model runs on a CPU"),
    ):
        code, _, err = sample(call, model, "--prompt", PROMPT, *given)
        assert code == 2 and message in err and err.count("\n") == 1


def test_without_a_name_a_free_one_is_found(call, model):
    for name in ("a-red-person-walks", "a-red-person-walks-2"):
        assert f"wrote outputs/samples/{name}.mp4" in sample(call, model, "--prompt", PROMPT)[1]


def test_many_processes_give_the_videos_of_one(call, model, monkeypatch):
    lines = [
        PROMPT,
        json.dumps({"prompt": "a blue person jumps", "references": ["b.mp4"], "seed": 4, "out": "named"}),
        "",
        json.dumps({"prompt": PROMPT, "num_samples": 3, "batch_size": 2, "out": "three", "label": "walk"}),
    ]
    Path("jobs.jsonl").write_text("\n".join(lines))
    arguments = ("--prompts-file", "jobs.jsonl", "--refs", "a.mp4")
    assert sample(call, model, *arguments, "--out", "one")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert sample(call, model, *arguments, "--out", "two")[0] == 0
    names = {path.name for path in Path("one").iterdir()}
    assert names == {path.name for path in Path("two").iterdir()}
    assert names > {"00001.mp4", "00001.json", "named", "named.json", "three-seed2"}
    for name in ("named", "three-seed0", "three-seed2"):
        assert frames(Path("one", name)) == frames(Path("two", name))
    assert json.loads(Path("one/named.json").read_text())["job"]["references"][0]["video"] == "b.mp4"
    assert json.loads(Path("one/three-seed1.json").read_text())["job"]["label"] == "walk"


def test_library_chooses_by_the_action_and_says_why(call, model):
    Path("a.txt").write_text("Young man walking on the beach")
    Path("b.txt").write_text("Mountain lake")
    code, out, _ = call("index_references.py", ".", "--out", "index.json")
    assert code == 0 and "2 videos, 1 verb, most often walk 1" in out and "b.mp4: 'Mountain lake'" in out
    assert load_library("index.json").index.verbs == [("walk",), ()]
    code, _, err = call("index_references.py", ".", "--out", "index.json")
    assert code == 2 and "exists already" in err
    code, out, _ = sample(call, model, "--prompt", PROMPT, "--library", "index.json", "--out", "out.mp4")
    assert code == 0 and "shares 'walk'" in out
    record = json.loads(Path("out.json").read_text())["job"]
    assert "shares 'walk'" in record["chosen"][0]["reason"] and Path(record["references"][0]["video"]).name == "a.mp4"
    assert record["references"][0]["caption"] == "Young man walking on the beach"
    code, _, err = sample(call, model, "--prompt", PROMPT, "--library", "index.json", "--example", "b.mp4")
    assert code == 2 and "index.json holds verbs alone" in err
    Path("out.mp4").unlink()  # it has no caption
    code, out, _ = call("index_references.py", ".", "--out", "library", "--model", str(model), "--device", "cpu")
    assert code == 0 and "2 clips added: 2 videos, 1 verb," in out
    arguments = ("--library", "library", "--example", "b.mp4", "--out", "moving.mp4")
    code, out, _ = sample(call, model, "--prompt", PROMPT, *arguments)
    assert code == 0 and "its motion is" in out
    record = json.loads(Path("moving.json").read_text())["job"]
    assert (
        Path(record["references"][0]["video"]).name == "a.mp4" and record["library"] is None
    )  # not the example itself


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a cat runs", "sclae": 1}', "did you mean 'scale'"),
        ('{"prompt": ', "line 1"),
        ('{"prompt": "a cat runs", "out": 3}', "out must be a string, got 3"),
        ('{"prompt": "a cat runs", "steps": 3}', "is called 'num_inference_steps' now"),
        ('{"prompt": "a cat runs", "refs": ["a.mp4"]}', "is called 'references' now"),
        ('{"prompt": "a cat runs", "references": "a.mp4"}', "references must be a list"),
        ('{"prompt": "a cat runs", "references": [{"vidoe": "a.mp4"}]}', "did you mean 'video'"),
        ('{"prompt": "a cat runs", "references": [3]}', "got 3"),
        ('{"prompt": "a cat runs", "num_inference_steps": 0}', "jobs.txt line 1: num_inference_steps is 0"),
        ('{"prompt": "a cat\\u0000 runs"}', "prompt: has a NUL character"),
        ('{"prompt": "a cat \\ud800 runs"}', "has half a character in it"),
        ('{"prompt": "a cat runs", "out": "../../x.mp4"}', "not a name inside the output folder"),
        ('{"prompt": "a cat runs", "out": "/tmp/x.mp4"}', "not a name inside the output folder"),
        ('{"prompt": "a cat runs", "out": "."}', "not a name inside the output folder"),
        ('{"prompt": "a cat runs", "out": "a/../../b"}', "not a name inside the output folder"),
        ('{"prompt": ' + "[" * 100000, "line 1"),
        ("", "has no prompts"),
    ],
)
def test_mistakes_in_a_prompts_file_end_in_one_sentence(call, model, line, message):
    Path("jobs.txt").write_text(line)
    code, _, err = sample(call, model, "--prompts-file", "jobs.txt")
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "512"), "WIDTHxHEIGHT"),
        (("--size", "31x32"), "multiple"),
        (("--image", ""), "image is an empty name: give a PNG, JPEG or WebP file"),
        (("--refs", "none.mp4"), "none.mp4 does not exist"),
        (("--refs", "still.png"), "a single frame shows no action"),
        (("--refs", "still.mp4"), "still.mp4: not a readable video"),
        (("--refs", "text.mp4"), "text.mp4: not a readable video"),
        (("--refs", "a.mp4", "--scale", "-1"), "scale is -1.0: it must be at least 0"),
        (("--refs", "a.mp4", "--ref-fps", "0"), "reference_fps is 0.0: it must be above 0"),
        (("--refs", "a.mp4", "--ref-guidance", "nan"), "must be finite"),
        (("--guidance", "nan"), "must be finite"),
        (("--size", "0x32"), "WIDTHxHEIGHT"),
        (("--num-frames", "0"), "from 1 to 65536"),
        (("--seed", "-1"), "at least 0"),
        (("--seed", str(2**64)), "64 bits"),
        (("--eta", "2"), "eta"),
        (("--out", "video.avi"), "must end in"),
        (("--refs", "a.mp4", "--library", "index.json"), "not both"),
        (("--library", "index.json"), "aicl index"),
        (("--num-samples", "0"), "num_samples is 0: it must be from 1 to 100000"),
        (("--num-refs", "2"), "from a library"),
        (("--refs", "a.mp4", "--ref-captions", "a", "b"), "got 2 captions for 1 reference"),
        (("--ref-captions", "a"), "belong to --references"),
        (("--refs", "a.mp4", "--first-reference-until", "1.5"), "must be from 0 to 1"),
        (("--out", "closed/out.mp4"), "cannot be written"),
        (("--refs", "empty"), "holds no images"),
        (("--prompt", "a\udcff"), "has half a character in it"),
        (("--adapter", "none.safetensors"), "does not exist"),
        (("--base", "elsewhere"), "give one of them"),
        (("--device", "nonsense"), "cannot be used here"),
        (("--image", "a.mp4"), "image a.mp4 cannot be read: it is no picture; give a PNG, JPEG or WebP file"),
        (("--image", "still.png"), f"'{PROMPT}' cannot be sampled: this is a text-to-video model: it takes no image"),
    ],
)
def test_mistakes_end_in_one_sentence(call, model, arguments, message):
    Image.new("RGB", (40, 40)).save("still.png")
    shutil.copy("still.png", "still.mp4")
    Path("text.mp4").write_text("no video")
    Path("empty").mkdir()
    Path("closed").write_text("a file, so no folder")
    code, out, err = sample(call, model, "--prompt", PROMPT, *arguments)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert "wrote" not in out


def test_references_without_an_adapter_are_refused_before_anything_is_said_of_them(call, model):
    code, out, err = call(
        "sample.py", "--base", model / "base", "--device", "cpu", "--prompt", PROMPT, "--refs", "a.mp4"
    )
    assert code == 2 and err.count("\n") == 1 and "no adapter reads its references: add --adapter" in err
    assert out.count("\n") == 1 and "with no adapter" in out  # the model's own line


def test_all_jobs_have_the_image_that_their_model_begins_with_before_the_first_is_made(call):
    tiny_pipeline("tiny_videocrafter_i2v").save_pretrained("i2v")
    Image.new("RGB", (40, 40)).save("still.png")
    Path("jobs.jsonl").write_text(json.dumps({"prompt": PROMPT, "image": "still.png"}) + "\na blue person jumps")
    arguments = ("--prompts-file", "jobs.jsonl", "--refs", "a.mp4", "--out", "made")
    code, _, err = sample(call, "i2v", *arguments)
    assert code == 2 and err.count("\n") == 1 and not any(Path("made").iterdir())
    assert "'a blue person jumps' cannot be sampled: this is an image-to-video model: give it an image" in err
    assert sample(call, "i2v", *arguments, "--image", "still.png", "--compare")[0] == 0
    assert {path.name for path in Path("made").glob("0000?.mp4")} == {"00001.mp4", "00002.mp4"}
    sheet = Image.open("made/00001-compare.png")  # the image, the reference, base and ours
    assert sheet.height >= 4 * (32 + 14) and sheet.getpixel((8, 14 + 8)) == (0, 0, 0) != sheet.getpixel((40, 14 + 8))


def test_a_training_run_serves_as_base_model(call, model):
    exported = Path("run/checkpoints/step_00000010/pipeline")
    shutil.copytree(model / "base", exported)
    (exported.parent / "progress.json").write_text("{}")
    adapter = model / "adapter.safetensors"
    arguments = ("--adapter", adapter, "--prompt", PROMPT, "--refs", "a.mp4", "--steps", 2, "--device", "cpu")
    assert call("sample.py", "--base", "run", *arguments, "--out", "run-frames")[0] == 0
    assert sample(call, model, "--prompt", PROMPT, "--refs", "a.mp4", "--out", "frames")[0] == 0
    assert frames(Path("run-frames")) == frames(Path("frames"))


def test_no_model_is_said_clearly(call):
    code, _, err = call("sample.py", "--prompt", PROMPT)
    assert code == 2 and "there is no model in checkpoints/puppets" in err


def test_an_untrained_config_can_be_sampled(call):
    models = SCRIPTS.parent / "configs" / "models"
    lines = [f"base: {{config: {models / 'tiny_lvdm.yaml'}}}", "prism: {width: 16, depth: 1, heads: 2, head_dim: 8}"]
    Path("aicl.yaml").write_text("\n".join([*lines, "integration: {head_dim: 16}"]))
    command = ("--config", "aicl.yaml", "--prompt", PROMPT, "--refs", "a.mp4", "--device", "cpu", "--steps", 2)
    for name in ("one", "again"):
        code, out, _ = call("sample.py", *command, "--out", name)
        assert code == 0 and out.startswith("model of aicl.yaml: lvdm with an untrained adapter, on cpu in float32\n")
    assert frames(Path("one")) == frames(Path("again"))  # random weights, but the same ones


def test_the_first_line_names_the_model_and_unknown_words_are_warned_about(call, model):
    with pytest.warns(UserWarning, match="this model does not know the word 'panda' of 'a panda walks'"):
        code, out, _ = sample(call, model, "--prompt", "a panda walks", "--out", "out.mp4")
    assert code == 0 and out.startswith(f"model {model}: videocrafter with an adapter of 0 steps, on cpu in float32\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample(call, model, "--prompt", PROMPT, "--out", "other.mp4")[0] == 0


def test_old_and_new_spellings_mean_the_same(call, model):
    new = ("--references", "a.mp4", "--num-inference-steps", 2, "--guidance-scale", 3, "--reference-fps", 4)
    old = ("--refs", "a.mp4", "--steps", 2, "--guidance", 3, "--ref-fps", 4)
    for name, options in (("new", new), ("old", old)):
        command = ("--model", model, "--device", "cpu", "--prompt", PROMPT, "--size", "32x16", *options, "--out", name)
        assert call("sample.py", *command)[0] == 0
    assert frames(Path("new")) == frames(Path("old")) and Image.open("new/00000.png").size == (32, 16)
    code, _, err = call("sample.py", "--prompt", PROMPT, "--lead", "0.5")
    assert code == 2 and "--lead is called --first-reference-until now" in err


def test_a_folder_of_frames_is_a_reference(call, model):
    frame_folder = Path("shown")
    write_video(frame_folder, pixels(0, frames=4), fps=4)
    assert sample(call, model, "--prompt", PROMPT, "--refs", frame_folder, "--compare", "--out", "out.mp4")[0] == 0
    assert json.loads(Path("out.json").read_text())["sha256"].keys() >= {"shown/00000.png", "shown/00003.png"}


def test_a_video_is_made_again_bit_for_bit_from_its_record(call, model):
    command = ("--prompt", PROMPT, "--refs", "a.mp4", "b.mp4@0.5", "--num-samples", 3, "--batch", 2, "--eta", 0.5)
    assert sample(call, model, *command, "--sampler", "ddim", "--out", "made")[0] == 0
    record = json.loads(Path("made-seed1.json").read_text())
    assert record["batch"] == {"seeds": [0, 1], "index": 1} and record["environment"]["device"] == "cpu"
    hashes = {Path(path).name for path in record["sha256"]}
    assert hashes >= {"config.yaml", "unet.safetensors", "adapter.safetensors", "a.mp4", "b.mp4"}
    code, out, err = call("sample.py", "--repeat", "made-seed1.json", "--out", "again")
    assert code == 0 and "wrote again" in out and "differ" not in err
    assert frames(Path("again")) == frames(Path("made-seed1"))
    again = json.loads(Path("again.json").read_text())
    assert again["job"] == record["job"] | {"out": "again"} and again["sha256"] == record["sha256"]
    assert call("sample.py", "--repeat", "again.json", "--out", "third")[0] == 0
    assert frames(Path("third")) == frames(Path("made-seed1"))


def test_a_record_that_cannot_be_repeated_is_one_sentence(call, model):
    assert sample(call, model, "--prompt", PROMPT, "--refs", "a.mp4", "--out", "made.mp4")[0] == 0
    record = json.loads(Path("made.json").read_text())

    def refused(message: str, *arguments: object, **changes: object) -> None:
        Path("changed.json").write_text(json.dumps(record | changes))
        code, _, err = call("sample.py", "--repeat", "changed.json", "--out", "again.mp4", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1

    refused("leave --num-inference-steps out", "--steps", 3)
    refused("is no record of a video", batch=None)
    refused("of a batch that does not hold its seed", batch={"seeds": [5], "index": 0})
    refused("did you mean 'seed'", job={**record["job"], "sead": 3})
    unet = next(path for path in record["sha256"] if path.endswith("unet.safetensors"))
    refused("the video cannot be made again with it", sha256={**record["sha256"], unet: "0" * 64})
    refused("a.mp4 was not there", sha256={k: v for k, v in record["sha256"].items() if k != "a.mp4"})
    code, _, err = call("sample.py", "--repeat", "made.mp4")
    assert code == 2 and "made.mp4 says nothing of how it was made: give the JSON beside it, made.json" in err
    Path("text.json").write_text("text")
    code, _, err = call("sample.py", "--repeat", "text.json")
    assert code == 2 and "text.json: is no valid JSON" in err
    code, _, err = call("sample.py", "--repeat", "made.json", "--out", "made.mp4")
    assert code == 2 and "exists already" in err

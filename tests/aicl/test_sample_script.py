"""scripts/sample.py and scripts/index_references.py, as they are called."""

import json
import runpy
import shutil
import sys
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


def test_a_video_its_record_and_its_comparison(call, model):
    code, out, _ = sample(
        call, model, "--prompt", PROMPT, "--refs", "a.mp4", "b.mp4", "--compare", "--scale", 0.5, "--out", "out.mp4"
    )
    assert code == 0 and "wrote out.mp4" in out
    assert f"'{PROMPT}', 4 frames of 32x32, 2 steps of ddim, guidance 4.0, seed 0, references a.mp4, b.mp4 at" in out
    assert probe("out.mp4").num_frames == 4
    compared = probe("out-compare.mp4")
    assert compared.width >= 4 * 32 and compared.height > 32  # two references, base and ours, under labels
    sheet = Image.open("out-compare.png")  # the same four, as rows of 4 frames
    assert sheet.width >= 4 * 32 and sheet.height >= 4 * (32 + 14)
    record = json.loads(Path("out.json").read_text())
    assert (record["job"]["refs"], record["job"]["scale"], record["job"]["guidance"]) == (["a.mp4", "b.mp4"], 0.5, 4.0)
    assert set(record["seconds"]) >= {"prism", "first_step", "sampling"}


def test_nothing_is_overwritten_unasked(call, model):
    command = ("--prompt", PROMPT, "--num-samples", 2, "--out", "out.gif")
    assert sample(call, model, *command)[0] == 0
    before = Path("out-seed0.gif").read_bytes()
    code, _, err = sample(call, model, *command, "--seed", 1)
    assert code == 2 and "out-seed1.gif exists already" in err and err.count("\n") == 1
    assert sample(call, model, *command, "--skip-existing")[0] == 0
    assert sample(call, model, *command, "--overwrite", "--refs", "a.mp4")[0] == 0
    assert Path("out-seed0.gif").read_bytes() != before


def test_without_a_name_a_free_one_is_found(call, model):
    for name in ("a-red-person-walks", "a-red-person-walks-2"):
        assert f"wrote samples/{name}.mp4" in sample(call, model, "--prompt", PROMPT)[1]


def test_many_processes_give_the_videos_of_one(call, model, monkeypatch):
    lines = [
        PROMPT,
        json.dumps({"prompt": "a blue person jumps", "refs": ["b.mp4"], "seed": 4, "out": "named"}),
        "",
        json.dumps({"prompt": PROMPT, "num_samples": 3, "batch": 2, "out": "three"}),
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
    assert json.loads(Path("one/named.json").read_text())["job"]["refs"] == ["b.mp4"]


def test_library_chooses_by_the_action_and_says_why(call, model):
    Path("a.txt").write_text("Young man walking on the beach")
    Path("b.txt").write_text("Mountain lake")
    code, out, _ = call("index_references.py", ".", "--out", "index.json")
    assert code == 0 and "2 videos, 1 verbs, most often walk 1" in out and "b.mp4: 'Mountain lake'" in out
    assert load_library("index.json").index.verbs == [("walk",), ()]
    code, _, err = call("index_references.py", ".", "--out", "index.json")
    assert code == 2 and "exists already" in err
    code, out, _ = sample(call, model, "--prompt", PROMPT, "--library", "index.json", "--out", "out.mp4")
    assert code == 0 and "shares 'walk'" in out
    record = json.loads(Path("out.json").read_text())["job"]
    assert record["chosen"][0]["shares"] == "walk" and Path(record["refs"][0]).name == "a.mp4"
    assert record["ref_captions"] == ["Young man walking on the beach"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a cat runs", "sclae": 1}', "did you mean 'scale'"),
        ('{"prompt": ', "line 1 is not valid JSON"),
        ('{"prompt": "a cat runs", "out": 3}', "out must be a string, got 3"),
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
        (("--size", "30x32"), "multiple"),
        (("--refs", "none.mp4"), "none.mp4 does not exist"),
        (("--refs", "still.png"), "a single frame shows no action"),
        (("--refs", "still.mp4"), "a single frame shows no action"),
        (("--refs", "text.mp4"), "text.mp4: not a readable video"),
        (("--refs", "a.mp4", "--scale", "-1"), "from 0 up"),
        (("--refs", "a.mp4", "--ref-fps", "0"), "must be positive"),
        (("--refs", "a.mp4", "--ref-guidance", "nan"), "must be finite"),
        (("--guidance", "nan"), "must be finite"),
        (("--size", "0x32"), "WIDTHxHEIGHT"),
        (("--num-frames", "0"), "at least 1"),
        (("--seed", "-1"), "at least 0"),
        (("--seed", str(2**64)), "64 bits"),
        (("--eta", "2"), "eta"),
        (("--out", "video.avi"), "must end in"),
        (("--refs", "a.mp4", "--library", "index.json"), "not both"),
        (("--library", "index.json"), "aicl index"),
        (("--num-samples", "0"), "at least 1"),
        (("--num-refs", "2"), "from a library"),
        (("--adapter", "none.safetensors"), "does not exist"),
        (("--base", "elsewhere"), "give one of them"),
        (("--device", "nonsense"), "cannot be used here"),
        (("--image", "a.mp4"), "takes no image"),
    ],
)
def test_mistakes_end_in_one_sentence(call, model, arguments, message):
    Image.new("RGB", (40, 40)).save("still.png")
    shutil.copy("still.png", "still.mp4")
    Path("text.mp4").write_text("no video")
    code, out, err = sample(call, model, "--prompt", PROMPT, *arguments)
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1
    assert "wrote" not in out


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
        assert code == 0 and "lvdm on cpu, with AICL" in out
    assert frames(Path("one")) == frames(Path("again"))  # random weights, but the same ones

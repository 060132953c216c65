"""The commands of the documentation on made-up data in the published layouts, with tiny models of every family."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from aicl.cli import parse, reproduce
from aicl.evaluation.results import Result, read_result
from lvdm.config import shipped_configs
from tests.aicl.evaluation_models import save_tiny_model
from tests.aicl.real_data import make_folder, make_ucf101, make_webvid, save_tiny_real_evaluators

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODELS = {  # as the rows of tables call them: a config of configs/models, frames and their rate
    "lvdm": ("tiny_lvdm", 10, 8),
    "vc": ("tiny_videocrafter", 13, 10),
    "vc2": ("tiny_videocrafter", 13, 10),
    "vc_i2v": ("tiny_videocrafter_i2v", 13, 10),
}


PICTURES = ("samples", "features", "motion_features", "attention")
VIDEOS = {"III": 15}  # five groups of three


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    """What a user with data and weights in other places writes after a command, and small counts."""
    folder = tmp_path_factory.mktemp("real")
    evaluators = save_tiny_real_evaluators(folder / "evaluators")
    given = []
    for seed, (name, (config, frames, fps)) in enumerate(MODELS.items()):
        place = save_tiny_model(folder / name, config, size=32, frames=frames, fps=fps, seed=seed)
        given += [f"model.{name}={place / 'base'}", f"adapter.{name}={place / 'adapter.safetensors'}"]
    ours = folder / "lvdm" / "adapter.safetensors"
    names = [f"table2_{number}" for number in (1, 2, 4, 5, 7, 8)]
    names += ["table2_2_unpooled", "table2_2_centred", "table2_7_centred", "table2_8_two_prisms"]
    names += ["no_positions", "independent_pairs", "uniform_timesteps", "paper_optimiser"]  # not paper_recipe
    given += [f"adapter.{name}={ours}" for name in names]
    given += [f"evaluators.{role}={path}" for role, path in evaluators.items()]
    return [*given, "benchmark.frames=10", "benchmark.size=[32,32]", "batch_size=15", "allow_few=true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, list[str]]:
    """Where each benchmark's data lies."""
    root = tmp_path_factory.mktemp("data")
    table, videos = make_webvid(root / "webvid_files") if (root / "webvid_files").mkdir() is None else (None, None)
    ucf101 = make_ucf101(root / "ucf101")
    webvid = [f"benchmark.path={videos}", f"benchmark.captions={table}", "benchmark.prompts=3"]
    webvid.append(f"benchmark.selection={root / 'selection.jsonl'}")
    folder = f"benchmark.path={make_folder(root / 'folder')}"
    return {"ucf101": [f"benchmark.path={ucf101}"], "webvid": webvid, "folder": [folder]}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """One folder for all commands, which share what they generate."""
    return tmp_path_factory.mktemp("out")


def run(out: Path, *arguments: str) -> None:
    reproduce.main(parse("reproduce", [*arguments, "--out", str(out), "--device", "cpu"]))


def documented() -> list[list[str]]:
    """Every `aicl reproduce` of the documentation on the paper's data or one's own, without what it sets."""
    commands = []
    for page in ("evaluation.md", "reproduce.md"):
        text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^.*aicl reproduce .*$", text, re.M):
            words = shlex.split(line, comments=True)
            words = words[words.index("reproduce") + 1 :]
            if not {"ucf101", "webvid", "folder"}.isdisjoint(words):
                commands.append([word for word in words if "=" not in word and word != "--save-videos"])
    return commands


def rows_of(path: Path) -> dict[str, str]:
    """The rows of a page's first table."""
    rows: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            rows.setdefault(line.split(" | ")[0].removeprefix("| "), line)
    return rows


def test_every_documented_command_makes_its_tables(out, overrides, data):
    commands = documented()
    tables = {word for words in commands for word in words if word in reproduce.TABLES}
    assert tables == set(reproduce.TABLES), "the documentation should name every table on the paper's data"
    shipped = {path.stem.removeprefix("experiment_") for path in (shipped_configs() / "tables").glob("experiment_*")}
    assert {word for words in commands for word in words} >= shipped, "and every experiment"
    done = set()
    for words in commands:
        for name in [name for name in data if name in words]:
            places = [*overrides, *data[name]]
            for table in [word for word in words if word in reproduce.TABLES or word in shipped]:
                if (name, table) in done:
                    continue
                done.add((name, table))
                kind = "--table" if table in reproduce.TABLES else "--experiment"
                small = ["pictures.0.samples=1"] if table in PICTURES else [f"videos={VIDEOS.get(table, 3)}"]
                run(out, kind, table, "--benchmark", name, *places, *small)


def test_table_1_stands_beside_the_papers(out):
    rows = rows_of(out / "table_1_ucf101.md")
    labels = ["LVDM", "LVDM + AICL", "VideoCrafter", "VideoCrafter + AICL", "VideoCrafter2", "VideoCrafter2 + AICL"]
    assert all("not run" not in rows[label] and "(paper " in rows[label] for label in labels)
    assert (
        "(paper 27.22)" in rows["LVDM"]
        and "(paper 897)" in rows["LVDM + AICL"]
        and "(paper 60.42)" in rows["LVDM + AICL"]
    )
    assert "(paper 30.41)" in rows_of(out / "table_1_webvid.md")["LVDM + AICL"]
    text = (out / "table_1_ucf101.md").read_text(encoding="utf-8")
    assert "What the paper reports" not in text and "FVD ↓" in text
    assert "own frame rates of generated videos: 8, 10 a second" in text and "of real videos: 25 a second" in text
    ours = read_result(out / "results" / "table_1_ucf101-0-3.json")
    assert ours.row == "VideoCrafter + AICL" and ours.baseline == "VideoCrafter" and ours.protocol.fps == 8
    assert {"cc", "fc", "fvd", "acc", "ten_way_acc", "action_score", "motion_similarity"} <= ours.metrics.keys()


def test_the_other_tables(out):
    second = rows_of(out / "table_2_ucf101.md")
    assert "(paper 1084)" in second["1 no self-attention in the prism"] and "(paper 897)" in second["3, 6, 9 ours"]
    third = rows_of(out / "table_3_ucf101.md")
    assert "(paper 1057)" in third["1 slowest, AICL"] and "(paper" not in third["1 slowest, base"]
    fourth = rows_of(out / "table_4_ucf101.md")
    assert "(paper 64.32)" in fourth["VideoCrafter"] and "(paper not readable)" in fourth["VideoCrafter + AICL"]
    fifth = rows_of(out / "table_5_webvid.md")
    assert (
        "(paper 992)" in fifth["2 references, all alike"]
        and "(paper" not in fifth["2 references, the first until 0.75"]
    )
    assert not any("not run" in line for table in (second, third, fourth, fifth) for line in table.values())


def test_videos_of_ones_own(out, overrides, data):
    run(out, "--table", "III", "--benchmark", "folder", *overrides, *data["folder"], "videos=15")
    fifth, text = rows_of(out / "table_5_folder.md"), (out / "table_5_folder.md").read_text(encoding="utf-8")
    assert len(fifth) >= 7 and not any("not run" in line for line in fifth.values())
    assert "folder, 8 prompts, 2 labels" in text and "KVD" in text and "FVD ↓" not in text
    assert "(paper" not in text and "What the paper reports, Table V on WebVid" in text
    assert "5 fastest, AICL" in rows_of(out / "table_3_folder.md")


def test_experiments(out):
    pseudo = out / "experiment_pseudo_words_ucf101.md"
    assert "pseudo-words for actions" in pseudo.read_text(encoding="utf-8") and len(rows_of(pseudo)) >= 7
    wrong = read_result(out / "results" / "experiment_wrong_reference_ucf101-0-2.json")
    assert wrong.row == "wrong reference" and "reference_acc" in wrong.metrics
    ingredients = rows_of(out / "experiment_ingredients_ucf101.md")
    assert "not run" in ingredients["the paper's recipe"] and "not run" not in ingredients["uniform timesteps"]
    text = (out / "experiment_ingredients_ucf101.md").read_text(encoding="utf-8")
    assert "no adapter 'paper_recipe' is given: adapter.paper_recipe=FILE" in text
    pictures = sorted(path.name for path in out.glob("experiment_*.png"))
    assert any("attention" in name for name in pictures) and any("features" in name for name in pictures)
    assert all(Image.open(out / name).size[0] > 32 for name in pictures)


def test_real_clips_are_never_compared_with_themselves(out, overrides, data, tmp_path):
    table = tmp_path / "real.yaml"
    table.write_text("title: T\nrows: [{label: real, kind: real}, {label: coded, kind: autoencoder, model: vc}]\n")

    def measured(size: int) -> list[Result]:
        places = [*overrides, *data["ucf101"], "videos=3", f"benchmark.size=[{size},{size}]"]
        run(out, "--preset", str(table), "--benchmark", "ucf101", *places)
        return [read_result(out / "results" / f"real_ucf101-0-{row}.json") for row in (0, 1)]

    rows = measured(32)
    for row in rows:  # their clips are real ones of the set, and the sample's own
        assert row.metrics.keys() >= {"cc", "acc", "motion_similarity"}
        assert row.missing.keys() >= {"fvd", "kvd", "action_score"} and "with themselves" in row.missing["fvd"]
    assert rows[1].rates["generated"] == [8.0]  # as it was encoded, not as the model's own videos
    smaller = measured(24)
    assert smaller[1].videos != rows[1].videos and smaller[0].videos == rows[0].videos


def test_nothing_is_done_twice(out, overrides, data, capsys):
    run(out, "--table", "I", "--benchmark", "ucf101", *overrides, *data["ucf101"], "videos=3")
    said = capsys.readouterr().out
    assert "generating: 0 of 18 videos are missing" in said and re.search(r"measuring: 0 of \d+ videos", said)


def test_one_selection_of_webvid_serves_others(out, overrides, data, tmp_path):
    selection = Path(data["webvid"][-1].partition("=")[2])
    chosen = [json.loads(line) for line in selection.read_text(encoding="utf-8").splitlines()]
    assert len(chosen) == 3
    trained = {"ride", "play"}
    assert all(not trained & set(entry["verbs"]) and entry["verbs"] for entry in chosen)
    prompts = {entry["caption"] for entry in chosen}
    manifest = out / "results" / "table_1_webvid-0-0.json"
    assert read_result(manifest).protocol.real == 3 and len(prompts) == 3

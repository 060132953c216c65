"""The command `aicl`: every verb answers at once, mistakes end in one sentence, and scripts are the same code."""

import argparse
import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aicl
from aicl.cli import ELSEWHERE, VERBS, main, parse, verb_module

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "sample": "sample",
    "train": "train",
    "evaluate": "evaluate",
    "reproduce": "reproduce",
    "convert": "convert_checkpoint",
    "export": "export_model",
    "check-data": "check_data",
    "cache": "cache_latents",
    "index": "index_references",
    "search": "search_references",
    "make-puppets": "make_puppets",
    "benchmark": "benchmark",
    "quickstart": "quickstart",
    "demo": "demo",
    "user-study": "user_study",
}
MAINTENANCE = ("rebuild_results",)  # of docs/results.md: nobody without the repository needs it
HEAVY = {"torch", "torchvision", "pytorch_lightning", "open_clip", "gradio", "av", "decord", "transformers", "scipy"}


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_help_lists_every_verb_and_the_version_is_the_package_s(capsys):
    assert exit_code("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert exit_code("--version") == 0 and capsys.readouterr().out == f"aicl {aicl.__version__}\n"
    assert exit_code("sampel") == 2 and "did you mean 'sample'?" in capsys.readouterr().err
    assert exit_code() == 2 and "VERB" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_file_help_and_script(verb, capsys):
    module = verb_module(verb)
    assert isinstance(module.parser(), argparse.ArgumentParser) and callable(module.main)
    assert exit_code(verb, "--help") == 0
    assert f"usage: aicl {verb} " in capsys.readouterr().out
    assert exit_code(verb, "--no-such-option") == 2
    assert "Traceback" not in capsys.readouterr().err
    if verb in SCRIPTS:
        assert f'run_verb("{verb}")' in (ROOT / "scripts" / f"{SCRIPTS[verb]}.py").read_text()


def test_every_script_is_a_verb():
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == {*SCRIPTS.values(), *MAINTENANCE}
    here = {verb.replace("-", "_") for verb in VERBS.keys() - ELSEWHERE.keys()}
    assert {path.stem for path in (ROOT / "aicl/cli").glob("[a-z]*.py")} == here


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_imports_anything_slow_before_its_options_are_read(verb):
    code = f"import sys; from aicl.cli import verb_module; verb_module('{verb}').parser(); print(*sys.modules)"
    start = time.perf_counter()
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not HEAVY & set(loaded.split())
    assert time.perf_counter() - start < 5  # a second on an idle machine; the check above is the exact one


MISTAKES = (
    "sample --prompt x --references missing.mp4",
    "sample --prompt x --base checkpoints/missing",
    "sample --prompt x --adapter missing",
    "sample --repeat missing.json",
    "train --config missing.yaml",
    "train --config configs/tiny/base.yaml training.missing=1",
    "train --config configs/tiny/base.yaml run.name=missing/",
    "train --config configs/aicl_lvdm.yaml base.path=missing",
    "train --config configs/aicl_lvdm.yaml base.path=checkpoints/puppets/base data.path=missing",
    "train --config configs/tiny/base.yaml data.path=docs model.autoencoder=runs/missing",
    "reproduce --table I --benchmark ucf101 benchmark.path=missing",
    "reproduce --table I --benchmark missing",
    "reproduce --table I missing=1",
    "reproduce --table I rows.0.missing=1",
    "evaluate score missing",
    "evaluate score docs --i3d missing.pt",
    "evaluate score docs --benchmark missing",
    "evaluate table missing.json",
    "evaluate vbench missing out",
    "convert missing.ckpt out",
    "export --base missing --out out",
    "calibrate docs --model missing",
    "check-data --kind folder --path missing",
    "cache --config configs/aicl_lvdm.yaml --base missing --out out",
    "index missing",
    "search hammers --library missing",
    "quickstart --action missing",
    "demo --models missing",
    "user-study serve out --ours missing --baseline missing",
    "user-study report missing",
)


def test_what_is_not_there_is_said_before_anything_slow_is_imported():
    code = f"""
import contextlib, io, sys
from aicl.cli import main
for line in {MISTAKES!r}:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main(line.split())
    except SystemExit as stop:
        print(stop.code, "missing" in said.getvalue(), {HEAVY!r} & set(sys.modules), line)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert ran.splitlines() == [f"2 True set() {line}" for line in MISTAKES]


@pytest.mark.parametrize(("out", "message"), (("docs", "is no latent cache and not empty"), ("README.md", "is a file")))
def test_a_cache_is_not_made_where_something_else_lies(out, message, capsys):
    command = ("cache", "--config", "configs/aicl_lvdm.yaml", "--base", str(ROOT / "checkpoints/puppets/base"))
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(ROOT / out)])
    assert stop.value.code == 2 and message in capsys.readouterr().err


PUPPETS = f"{ROOT}/configs/puppets/small_set.yaml"  # of data/mine, which is not there


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample --promt x", "error: there is no option --promt: did you mean --prompt? (aicl sample --help lists"),
        ("evaluate score out --benchmrk x", "no option --benchmrk: did you mean --benchmark? (aicl evaluate score"),
        ("train", "error: the following arguments are required: --config (aicl train --help lists the options)"),
        ("user-study", "error: say what to do, one of serve, "),
        ("sample --prompt a person waves", "error: 'person waves' belongs to no option: put what has several"),
        ("train seed=1 --config a.yaml training.steps", "quotes, and a setting is written key=value (aicl train"),
        (f"train --config {PUPPETS} data.pth=x", "to the folder of the videos (data.pth was given: did"),
        ("reproduce --table I model.lvmd=x", "'lvmd' in model, of which the tables' rows take theirs: did you mean"),
        ("reproduce --table I adapter.vc22=x videos=4", "unknown key 'vc22' in adapter, of which"),
    ],
)
def test_a_mistake_in_the_options_is_one_sentence(line, message, capsys):
    assert exit_code(*line.split()) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_settings_may_stand_before_and_after_options():
    args = parse("train", ["training.steps=1", "--config", "a.yaml", "run.name=b"])
    assert (args.config, args.overrides) == ("a.yaml", ["training.steps=1", "run.name=b"])
    after = parse("reproduce", ["--experiment", "samples", "videos=64", "--benchmark", "folder", "model.a=b", "c"])
    assert (after.experiment, after.benchmark) == (["samples"], ["folder", "c"])
    assert after.overrides == ["videos=64", "model.a=b"]
    assert parse("train", ["--config", "a=b.yaml"]).config == "a=b.yaml"
    assert parse("benchmark", ["profile", "--config", "a.yaml", "training.steps=1"]).overrides == ["training.steps=1"]
    assert parse("reproduce", ["videos=64", "--save-videos", "model.a=b"]).overrides == ["videos=64", "model.a=b"]
    several = parse("benchmark", ["strategies", "--clips", "clips", "--limits", "24", "48", "training.compile=false"])
    assert (several.limits, several.overrides) == ([24.0, 48.0], ["training.compile=false"])
    flag = parse("benchmark", ["train", "--clips", "clips", "--cached", "training.devices=2", "training.steps=9"])
    assert (flag.cached, flag.overrides) == (True, ["training.devices=2", "training.steps=9"])


def test_messages_name_no_file_that_an_installed_package_lacks():
    for path in [*(ROOT / "aicl").rglob("*.py"), *(ROOT / "lvdm").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert "scripts/" not in node.value, f"{path}: {node.value}"

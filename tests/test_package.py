"""The wheel, installed and used from an empty folder, and what happens beside another package called lvdm."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import aicl
from lvdm.video import write_video
from tests.aicl.test_pipeline import pixels, tiny_pipeline

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "aicl", "lvdm", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The built wheel; built of a copy, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("build")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(folder / "dist"), "."], cwd=folder, check=True, timeout=300)
    [built] = (folder / "dist").glob("aicl-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel alone, which sees the other packages of this one behind it."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin/python"),
        "install",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, "-q", str(wheel)], check=True, timeout=300)
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(environment: Path, folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a folder of its own, with nothing of this checkout in sight."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(environment / "bin/aicl"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=clean | variables, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_wheel_holds_code_configs_and_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name.removeprefix("lvdm/configs/") for name in names if name.startswith("lvdm/configs/")} == configs
    assert {name.split("/")[0] for name in names} == {"aicl", "lvdm", f"aicl-{aicl.__version__}.dist-info"}
    assert {"aicl/py.typed", "lvdm/py.typed"} <= set(names)
    data = [path for folder in ("aicl", "lvdm") for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in data:
        if path.suffix not in (".pyc", ".so"):
            assert path.relative_to(ROOT).as_posix() in names
    metadata = zipfile.ZipFile(wheel).read(f"aicl-{aicl.__version__}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata


def test_the_main_job_runs_from_an_empty_folder(installed, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "models" / "tiny")
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "a.mp4", pixels(0, frames=8), fps=8)
    options = ("--prompt", "a red person walks", "--refs", "../a.mp4", "--steps", 2, "--device", "cpu")
    done = run(installed, tmp_path / "empty", "sample", "--model", "../models/tiny", *options, "--out", "b.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model ../models/tiny: videocrafter with an adapter")
    record = json.loads((tmp_path / "empty/b.json").read_text())
    assert record["environment"]["aicl"] == aicl.__version__


SEVERAL = """
import contextlib, io, json, sys
import aicl.cli, lvdm.config
said = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            aicl.cli.main(command)
        except SystemExit as stop:
            said.append([stop.code, err.getvalue()])
print(json.dumps([aicl.__file__, str(lvdm.config.shipped_configs()), said]))
"""


def test_what_the_installed_commands_say_without_models(installed, tmp_path):
    """One process for all, since each has to import everything."""
    on_cpu = ("training.strategy=single", "training.accelerator=cpu", "training.precision=float32")
    names = ("aicl_lvdm", "configs/aicl_lvdm.yaml", "aicl_lvmd")
    commands = [["train", "--config", name, "base.path=nowhere", *on_cpu] for name in names]
    commands += [["quickstart"], ["sample", "--prompt", "a red person walks"]]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    python = [str(installed / "bin/python"), "-c", SEVERAL, json.dumps(commands)]
    done = subprocess.run(python, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=True)
    *places, said = json.loads(done.stdout.splitlines()[-1])
    assert all(place.startswith(str(installed)) for place in places)  # nothing came from this checkout
    assert all(status == 2 for status, _ in said) and all(err.count("\n") == 1 for _, err in said[:3])
    by_name, by_path, misspelt, demo, sample = (err for _, err in said)
    for err in (by_name, by_path):  # shipped configs are found either way
        assert "base.path is 'nowhere', which does not exist" in err and "aicl convert" in err
    assert "aicl_lvmd" in misspelt
    assert "which is part of the repository" in demo
    assert "there is no model in checkpoints/puppets, the default" in sample


@pytest.mark.parametrize("folder", ["modules", "models/modules"])
def test_another_lvdm_is_told_in_one_sentence(installed, tmp_path, folder):
    (tmp_path / "upstream" / "lvdm" / folder).mkdir(parents=True)
    (tmp_path / "upstream" / "lvdm" / "__init__.py").touch()
    for command in ("--help", "sample"):
        done = run(installed, tmp_path, command, PYTHONPATH=str(tmp_path / "upstream"))
        assert done.returncode != 0 and done.stderr.count("\n") == 1
        assert f"the package lvdm in {tmp_path / 'upstream' / 'lvdm'} is not AICL's" in done.stderr


def test_requirements_pin_what_the_package_needs_and_each_is_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = set(re.findall(r"^([A-Za-z0-9_.-]+)==", (ROOT / "requirements.txt").read_text(), flags=re.M))
    named = {re.split(r"[<>=!;\[ ]", each, maxsplit=1)[0] for each in project["dependencies"]}
    modules = {
        "pytorch-lightning": "pytorch_lightning",
        "open_clip_torch": "open_clip",
        "pillow": "PIL",
        "pyyaml": "yaml",
    }
    text = "".join(path.read_text() for folder in ("aicl", "lvdm") for path in (ROOT / folder).rglob("*.py"))
    for name in named:
        assert name in pinned, f"{name} has no exact version in requirements.txt"
        module = modules.get(name, name)
        optional = name == "tensorboard"  # Lightning's logger imports it
        assert optional or re.search(rf"^\s*(import|from) {module}\b", text, flags=re.M), f"{name} is not used"

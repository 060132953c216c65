"""`aicl doctor`: what is missing or harmful is said, and decides the exit status."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from aicl import doctor
from aicl.cli import doctor as verb
from aicl.cli import parse

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"


def found(**options) -> dict[tuple[str, str], list[str]]:
    lines: dict[tuple[str, str], list[str]] = {}
    for finding in doctor.examine(**options):
        lines.setdefault((finding.topic, finding.status), []).append(finding.text)
    return lines


def test_the_shipped_models_are_found_and_nothing_stops_the_commands(capsys):
    assert verb.main(parse("doctor", ["--checkpoints", str(SHIPPED)])) == 0
    printed = capsys.readouterr().out
    assert "puppets: lvdm, text-to-video, with an adapter" in printed
    assert "puppets_i2v: videocrafter, image-to-video, with an adapter" in printed and "PROBLEM" not in printed


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [("pytorch-lightning", "2.6.2", "malicious"), ("deepspeed", "0.18.1+cu12", "wrong ZeRO-2 gradients")],
)
def test_a_harmful_release_is_a_problem(monkeypatch, name, version, reason):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: version if asked == name else real(asked))
    assert any(reason in text for text in found(checkpoints=SHIPPED)["package", "problem"])


def test_a_missing_package_is_a_problem_and_an_optional_one_a_note(monkeypatch):
    def version(asked: str) -> str:
        if asked in ("einops", "wandb"):
            raise importlib.metadata.PackageNotFoundError(asked)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    lines = found(checkpoints=SHIPPED)
    assert lines["package", "problem"] == ["einops is missing: pip install einops"]
    assert "wandb is not installed; it is needed for logging.wandb" in lines["package", "note"]


def test_a_folder_that_lacks_weights_is_a_problem(tmp_path, capsys):
    files = shutil.ignore_patterns("unet.safetensors", "adapter.safetensors")
    shutil.copytree(SHIPPED / "puppets", tmp_path / "half", ignore=files)
    assert verb.main(parse("doctor", ["--checkpoints", str(tmp_path)])) == 1
    assert "half: unet.safetensors, adapter.safetensors missing" in capsys.readouterr().out


def test_another_lvdm_in_the_way_is_named(monkeypatch):
    class Elsewhere:
        submodule_search_locations = ("/elsewhere/lvdm",)

    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: Elsewhere if name == "lvdm" else real(name))
    [text] = found(checkpoints=SHIPPED)["package", "problem"]
    assert text.startswith("lvdm is imported from /elsewhere/lvdm, not from ")

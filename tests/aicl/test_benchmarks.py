"""What AICL adds to sampling is measured at tiny size: for references that are new, and for those that are kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from aicl import benchmarks
from aicl.benchmark_parts import Subject, parts, run_parts
from aicl.cli.benchmark import main, parser
from lvdm.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_what_references_cost_by_how_new_they_are():
    models = CONFIGS / "tiny" / "aicl.yaml", CONFIGS / "models" / "tiny_lvdm.yaml"
    [record] = benchmarks.overhead(*models, references=(2,), steps=2, device="cpu", repeats=1)
    assert record["references"] == 2 and all(record[name] > 0 for name in ("base_s", "aicl_s", "encode_s", "prism_s"))
    assert all(record[name].endswith("%") for name in ("added", "added_other_prompt", "added_other_seed"))


def test_a_part_that_fails_is_written_down_and_the_others_run():
    def broken():
        yield {"ms": 1}
        raise ConfigError("no such card:\nbuy one")

    def crash():
        raise RuntimeError("kernel")

    records = list(run_parts({"a": broken, "b": crash, "c": lambda: [{"ms": 2}]}))
    assert [(each["benchmark"], each.get("ms"), each.get("failed")) for each in records] == [
        ("a", 1, None),
        ("a", None, "no such card: buy one"),
        ("b", None, "RuntimeError: kernel"),
        ("c", 2, None),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("clip --steps 0", "--steps is 0: it must be at least 1"),
        ("batches --sizes 1 0", "--sizes is 0: it must be at least 1"),
        ("train --clips . --steps 4", "--steps is 4: it must be at least 5"),
        ("strategies --clips . --limits 24 -1", "a limit of -1.0 GiB leaves no memory: give more than 0"),
        ("train --clips absent", "absent has no captions.csv: make a folder of clips with aicl make-puppets"),
        ("step --upstream .", ". has no lvdm/**/openaimodel3d.py: give a checkout of LVDM or VideoCrafter"),
        ("step --out pyproject.toml", "pyproject.toml exists already: choose another --out or add --overwrite"),
    ],
)
def test_what_cannot_be_measured_is_told_at_once(arguments, sentence):
    with pytest.raises(ConfigError) as refused:
        main(parser().parse_args(arguments.split()))
    assert str(refused.value) == sentence


def test_a_model_that_is_not_shipped_is_told_with_those_that_are():
    with pytest.raises(ConfigError, match=r"--model aicl_lvdm is no config in .*: choose from lvdm_t2v_256, puppets, "):
        main(parser().parse_args(["step", "--model", "aicl_lvdm"]))


def test_all_has_the_parts_that_can_be_measured(tmp_path):
    subject = Subject(None, Path("a"), Path("b"), ["cpu"])
    assert list(parts(subject)) == ["step", "clip", "clip with a step cache", "batches", "overhead", "offload"]
    more = replace(subject, devices=["cuda:0", "cuda:1"], clips=tmp_path, upstream=tmp_path)
    added = ["step beside upstream", "devices", "train from files", "train from a cache", "strategies"]
    assert list(parts(more))[6:] == added

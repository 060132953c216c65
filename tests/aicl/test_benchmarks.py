"""What AICL adds to sampling is measured at tiny size: for references that are new, and for those that are kept."""

from pathlib import Path

from aicl import benchmarks

CONFIGS = Path(__file__).parents[2] / "configs"


def test_what_references_cost_by_how_new_they_are():
    models = CONFIGS / "tiny" / "aicl.yaml", CONFIGS / "models" / "tiny_lvdm.yaml"
    [record] = benchmarks.overhead(*models, references=(2,), steps=2, device="cpu", repeats=1)
    assert record["references"] == 2 and all(record[name] > 0 for name in ("base_s", "aicl_s", "encode_s", "prism_s"))
    assert all(record[name].endswith("%") for name in ("added", "added_other_prompt", "added_other_seed"))

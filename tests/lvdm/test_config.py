"""Configuration files, overrides and checked construction; error messages are compared word for word."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from lvdm import config
from lvdm.errors import ConfigError


@dataclass
class Optimiser:
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["adam", "sgd", 1] = "adam"


@dataclass
class Run:
    name: str
    optimiser: Optimiser
    steps: int = 10
    ema: float | None = None
    compile: bool = False
    out: Path | None = None
    seeds: list[int] = field(default_factory=list)
    rows: list[Optimiser] = field(default_factory=list)
    size: int | list[int] = 64
    preview: Optimiser | None = None
    unet: dict = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    extra: Any = None


def error(call, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_extends_merges_mappings_and_replaces_lists(tmp_path):
    write(tmp_path, "base.yaml", "unet: {width: 320, levels: [1, 2, 4]}\nsteps: 5\nlr: 1e-4\n")
    write(tmp_path, "fast.yaml", "steps: 2\nname: fast\n")
    write(tmp_path, "sub/mid.yaml", "extends: ../base.yaml\nunet: {levels: [1]}\n")
    path = write(tmp_path, "run.yaml", "extends: [sub/mid.yaml, fast.yaml]\nname: run\nroot: ${name}/${unet.width}\n")
    assert config.load(path) == {
        "unet": {"width": 320, "levels": [1]},
        "steps": 2,
        "lr": 1e-4,
        "name": "run",
        "root": "run/320",
    }


def test_overrides_reach_nested_keys_lists_and_interpolations(tmp_path):
    path = write(tmp_path, "run.yaml", "unet: {width: 320, levels: [1, 2]}\nname: a\nroot: ${name}/x\n")
    overrides = ["unet.width=64", "unet.levels.1=8", "name=b=c", "unet={depth: 1e-3}"]
    loaded = config.load(path, overrides)
    assert loaded == {"unet": {"width": 64, "levels": [1, 8], "depth": 1e-3}, "name": "b=c", "root": "b=c/x"}


def test_overrides_of_unknown_keys_name_the_nearest(tmp_path):
    path = write(tmp_path, "run.yaml", "training: {steps: 5, lr: 0.1}\nseeds: [1, 2]\n")
    assert error(config.load, path, ["training.stesp=3"]) == "unknown key 'stesp' in training: did you mean 'steps'?"
    assert (
        error(config.load, path, ["trainign.steps=3"]) == f"unknown key 'trainign' in {path}: did you mean 'training'?"
    )
    assert error(config.load, path, ["training.zzz=3"]) == "unknown key 'zzz' in training: valid keys are steps, lr"
    assert error(config.load, path, ["training.lr.x=3"]) == "unknown key 'x' in training.lr: valid keys are none"
    assert error(config.load, path, ["seeds.2=3"]) == "seeds has items 0..1, but an override names '2'"
    assert error(config.load, path, ["training"]) == "override 'training' must be written as key=value"


def test_a_schema_allows_keys_that_the_file_leaves_at_their_defaults(tmp_path):
    path = write(tmp_path, "run.yaml", "name: a\noptimiser: {lr: 0.1}\n")
    loaded = config.load(path, ["ema=0.99", "preview.lr=1", "unet.anything.at_all=1"], schema=Run)
    assert loaded["ema"] == 0.99 and loaded["preview"] == {"lr": 1} and loaded["unet"] == {"anything": {"at_all": 1}}
    path = write(tmp_path, "deep.yaml", "name: a\noptimiser: {lr: 0.1}\nunet: {levels: {first: 1}}\n")
    assert config.load(path, ["unet.levels.second=2"], schema=Run)["unet"] == {"levels": {"first": 1, "second": 2}}
    assert (
        error(config.load, path, ["preview.kid=1"], schema=Run) == "unknown key 'kid' in preview: did you mean 'kind'?"
    )
    path = write(tmp_path, "rows.yaml", "name: a\nrows: [{lr: 0.1}]\noptimiser: {lr: 0.1}\n")
    assert config.load(path, ["rows.0.kind=sgd"], schema=Run)["rows"] == [{"lr": 0.1, "kind": "sgd"}]
    assert "did you mean 'kind'?" in error(config.load, path, ["rows.0.kid=1"], schema=Run)
    assert config.load(path, ["other.key=1"], schema=Run | dict)["other"] == {"key": 1}
    assert "did you mean 'kind'?" in error(config.load, path, ["optimiser.kid=1"], schema=Run | dict)
    assert error(config.load, path, ["emma=1"], schema=Run) == f"unknown key 'emma' in {path}: did you mean 'ema'?"


def test_unreadable_files_are_one_sentence(tmp_path):
    missing = tmp_path / "no.yaml"
    assert error(config.load, missing) == f"config file {missing} cannot be read: No such file or directory"
    child = write(tmp_path, "child.yaml", "extends: no.yaml\n")
    assert (
        error(config.load, child)
        == f"config file {missing}, which {child} extends, cannot be read: No such file or directory"
    )
    twice = write(tmp_path, "twice.yaml", "a: 1\na: 2\n")
    assert "is not valid YAML" in error(config.load, twice) and "\n" not in error(config.load, twice)
    text = write(tmp_path, "text.yaml", "- 1\n")
    assert error(config.load, text) == f"config file {text} must hold a mapping at its top level"
    number = write(tmp_path, "number.yaml", "extends: 3\n")
    assert error(config.load, number) == f"config file {number}: extends must be a file or a list of files, got 3"


def test_circular_extends_and_unresolved_values(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    path = write(tmp_path, "b.yaml", "extends: a.yaml\n")
    assert error(config.load, path) == f"config file {path} extends itself by way of b.yaml, a.yaml"
    path = write(tmp_path, "c.yaml", "root: ${data.folder}\n")
    assert error(config.load, path) == f"{path}: Interpolation key 'data.folder' not found"
    path = write(tmp_path, "d.yaml", "root: ???\n")
    assert error(config.load, path) == f"{path}: Missing mandatory value: root"
    assert config.load(path, ["root=here"]) == {"root": "here"}


def test_construction_checks_and_converts():
    run = config.from_mapping(
        Run,
        {
            "name": "a",
            "optimiser": {"lr": 1, "betas": [0.9, 1]},
            "out": "runs/a",
            "seeds": (1, 2),
            "size": [32, 64],
            "preview": {"lr": 0.5},
            "limits": {"a": 1},
            "extra": {"x": [1]},
        },
    )
    assert run.optimiser == Optimiser(1.0, (0.9, 1.0)) and isinstance(run.optimiser.lr, float)
    assert run.out == Path("runs/a") and run.seeds == [1, 2] and run.size == [32, 64]
    assert run.preview == Optimiser(0.5) and run.ema is None and run.extra == {"x": [1]}
    assert config.from_mapping(Run, run) is run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 1}, "unknown key 'stepz' in run: did you mean 'steps'?"),
        ({"optimiser": {"lr": 1, "beta": 2}}, "unknown key 'beta' in run.optimiser: did you mean 'betas'?"),
        ({"optimiser": {}}, "missing key 'lr' in run.optimiser"),
        ({"optimiser": 3}, "run.optimiser must be a mapping, got 3"),
        ({"optimiser": {"lr": "fast"}}, "run.optimiser.lr must be a number, got 'fast'"),
        ({"optimiser": {"lr": True}}, "run.optimiser.lr must be a number, got True"),
        ({"optimiser": {"lr": 1, "betas": [0.9]}}, "run.optimiser.betas must have 2 items, got 1"),
        ({"optimiser": {"lr": 1, "kind": "adm"}}, "run.optimiser.kind must be one of 'adam', 'sgd', 1, got 'adm'"),
        ({"optimiser": {"lr": 1, "kind": True}}, "run.optimiser.kind must be one of 'adam', 'sgd', 1, got True"),
        ({"steps": 1.0}, "run.steps must be an integer, got 1.0"),
        ({"steps": None}, "run.steps must be an integer, got None"),
        ({"compile": 1}, "run.compile must be true or false, got 1"),
        ({"name": 1}, "run.name must be a string, got 1"),
        ({"out": 1}, "run.out must be a path, got 1"),
        ({"seeds": [1, "x"]}, "run.seeds.1 must be an integer, got 'x'"),
        ({"seeds": 1}, "run.seeds must be a list, got 1"),
        ({"size": "big"}, "run.size must be an integer or a list, got 'big'"),
        ({"preview": {"lr": 1, "kid": 2}}, "unknown key 'kid' in run.preview: did you mean 'kind'?"),
        ({"limits": {"a": "x"}}, "run.limits.a must be an integer, got 'x'"),
        ({"unet": [1]}, "run.unet must be a mapping, got [1]"),
    ],
)
def test_construction_errors(change, message):
    mapping = {"name": "a", "optimiser": {"lr": 1.0}} | change
    assert error(config.from_mapping, Run, mapping, "run") == message


def test_saved_configurations_load_and_build_again(tmp_path):
    run = Run("a", Optimiser(1e-5, (0.9, 0.9)), out=Path("x/y"), seeds=[3], unet={"levels": [1, 2], "note": "1e3"})
    path = tmp_path / "deep" / "run.yaml"
    config.save(path, config.to_mapping(run))
    assert config.from_mapping(Run, config.load(path)) == run


def test_a_renamed_key_is_named(tmp_path):
    @dataclass
    class Renamed:
        RENAMED: ClassVar[dict[str, str]] = {"clip": "max_grad_norm"}
        max_grad_norm: float = 1.0

    with pytest.raises(ConfigError, match="'clip' in training is called 'max_grad_norm' now"):
        config.from_mapping(Renamed, {"clip": 1.0}, "training")
    path = write(tmp_path, "run.yaml", "max_grad_norm: 2.0\n")
    assert "is called 'max_grad_norm' now" in error(config.load, path, ["clip=1.0"], schema=Renamed)
    assert error(config.load, path, ["RENAMED=1"], schema=Renamed).endswith("valid keys are max_grad_norm")

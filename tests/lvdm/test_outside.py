"""The door for files from outside: limits of depth, size and number, and what its sentences say."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lvdm import config, outside
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.models.components import ModelConfig, build_components
from lvdm.training.settings import RunSettings
from tests.lvdm.published import MODELS


def refused(kind, function, *arguments, **options) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 60 + "]" * 60, "nested too deeply to be read (at most 50 levels)"),
        ("[" * 200_000, "nested too deeply"),
        ("9" * 5000, "is no number that can be used"),
        ("12345678901234567890", "is no number that can be used"),
        ("1e999", "is no number that can be used"),
        ("NaN", "is no number that can be used"),
        ('{"a": 1', "at line 1, column"),
        ("", "is no valid JSON"),
    ],
)
def test_json(text, reason):
    assert reason in refused(DataError, outside.parse_json, text, "here", DataError)
    assert refused(DataError, outside.parse_json, text, "here", DataError).startswith("here: ")


def test_yaml():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi"):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    assert "more than 100,000 values" in refused(ConfigError, outside.check_yaml, bomb, "here", ConfigError)
    deep = "a: " + "[" * 100 + "]" * 100
    assert "nested too deeply" in refused(ConfigError, outside.check_yaml, deep, "here", ConfigError)
    indented = "\n".join("  " * depth + "a:" for depth in range(100))
    assert "nested too deeply" in refused(ConfigError, outside.check_yaml, indented, "here", ConfigError)
    assert "no number" in refused(ConfigError, outside.check_yaml, "a: " + "1" * 30, "here", ConfigError)
    outside.check_yaml("a: '" + "1" * 30 + "'\nb: &b [1]\nc: *b\n", "here", ConfigError)
    outside.check_yaml("a: [", "here", ConfigError)  # grammar is the parser's business


def test_paths_and_texts():
    assert "NUL" in refused(DataError, outside.checked_path, "a\0b", DataError)
    assert "half a character" in refused(DataError, outside.checked_path, "a\ud800", DataError)
    assert "longer than 255 bytes" in refused(DataError, outside.checked_path, "a/" + "ä" * 200, DataError)
    assert str(outside.checked_path("a/" + "x" * 255 + "/http:x", DataError)).endswith("http:x")
    assert "must be a text, not 3" in refused(DataError, outside.check_text, 3, "here", DataError)
    assert "a whole number" in refused(DataError, outside.checked, True, int, "here", DataError)
    assert len(refused(DataError, outside.checked, "x" * 9999, list, "here", DataError)) < 200


def test_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert outside.read_json(path, DataError) == [1]
    assert "must be an object" in refused(DataError, outside.read_object, path, DataError)
    assert "too large" in refused(DataError, outside.read_json, path, DataError, limit=2)
    assert "cannot be read: Is a directory" in refused(DataError, outside.read_text, tmp_path, DataError)
    path.write_bytes(b"x" * (outside.MAX_LINE + 5))
    assert "line 1 has more than" in refused(DataError, lambda: list(outside.read_lines(path, DataError)))


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"

    def read(name="aicl"):
        with outside.open_tensors(path, CheckpointError) as file:
            return outside.metadata_object(file.metadata(), name, path, CheckpointError)

    assert "is not there" in refused(CheckpointError, read)
    save_file({"a": torch.zeros(1)}, path, {"aicl": "{", "other": "[]", "deep": "[" * 9000})
    assert "no valid JSON" in refused(CheckpointError, read)
    assert "must be an object" in refused(CheckpointError, read, "other")
    assert "nested too deeply" in refused(CheckpointError, read, "deep")
    assert "says nothing about itself" in refused(CheckpointError, read, "missing")
    path.write_bytes((10**15).to_bytes(8, "little") + b"{}")  # a header of a petabyte
    assert "damaged or no safetensors file" in refused(CheckpointError, read)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("extends: 5\n", "extends must be a file or a list of files, got 5"),
        ("extends: {a: b}\n", "extends must be a file or a list of files"),
        ("extends: [a.yaml, 3]\n", "extends must be a file or a list of files"),
        ("extends: ???\n", "cannot be read: No such file"),
        ("extends: ${nope}\n", "cannot be read: No such file"),
        ('extends: "a\\0b"\n', "NUL"),
        (f"extends: {'x' * 300}.yaml\n", "longer than 255 bytes"),
        ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
        ("a: {b: ${a}}\n", ""),
        ("- 1\n", "must hold a mapping"),
        ("just words\n", "must hold a mapping"),
        ("5\n", "must hold a mapping"),
        ("a: 1\na: 2\n", "not valid YAML"),
        ("\0", "NUL"),
    ],
)
def test_configs(tmp_path, text, reason):
    (tmp_path / "run.yaml").write_text(text)
    assert reason in refused(ConfigError, config.load, tmp_path / "run.yaml")


def test_long_chains_of_configs(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "40.yaml").write_text("a: 1\n")
    assert "extend each other: too many" in refused(ConfigError, config.load, tmp_path / "0.yaml")
    assert config.load(tmp_path / "30.yaml") == {"a": 1}


def test_overrides(tmp_path):
    (tmp_path / "run.yaml").write_text("a: 1\nb: [1, 2]\n")
    for override in (f"a={'[' * 500}", "a=" + "9" * 100, "b.²=1", f"b.{'9' * 5000}=1", "a=[", "a=${", "=", "a\0=1"):
        assert refused(ConfigError, config.load, tmp_path / "run.yaml", [override])


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**17])
@pytest.mark.parametrize(
    "key",
    ["unet.model_channels", "unet.num_res_blocks", "unet.num_head_channels", "unet.temporal_length", "text.width",
     "text.layers", "autoencoder.ddconfig.ch", "autoencoder.ddconfig.num_res_blocks", "autoencoder.embed_dim",
     "diffusion.rescale_steps", "defaults.num_frames"],
)  # fmt: skip
def test_sizes_of_models_are_checked_before_anything_is_made(key, value):
    def build():
        mapping = config.load(MODELS / "tiny_videocrafter.yaml", [f"{key}={value}"])
        build_components(config.from_mapping(ModelConfig, mapping), init="meta")

    message = refused(ConfigError, build)
    assert key.rpartition(".")[2] in message and (str(value) in message or "num_heads" in message)


def test_lists_of_sizes():
    mapping = config.load(MODELS / "tiny_videocrafter.yaml", [f"unet.channel_mult={json.dumps([1] * 100)}"])
    message = refused(ConfigError, build_components, config.from_mapping(ModelConfig, mapping), init="meta")
    assert message == "unet.channel_mult has 100 items: at most 64 make sense"


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_seeds(seed):
    given = {"name": "a", "task": "t", "seed": seed}
    assert f"run.seed is {seed}" in refused(ConfigError, config.from_mapping, RunSettings, given, "run")

"""Reading weight files of every published form, refusing every usual wrong one, and telling families apart."""

import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from lvdm.checkpoints import check_entries, detect_family, load_strict, read_checkpoint
from lvdm.checkpoints.families import split_parts
from lvdm.checkpoints.folder import read_part, write_part
from lvdm.errors import CheckpointError
from tests.parity.rebuild import full_layouts

STATE = {"model.diffusion_model.a.weight": torch.arange(6.0).view(2, 3), "first_stage_model.b": torch.ones(4)}


def same(found, expected=STATE):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "callbacks": {}},
        {"module": {f"_forward_module.{name}": tensor for name, tensor in STATE.items()}, "dp_world_size": 8},
    ],
    ids=["plain", "lightning", "deepspeed"],
)
def test_every_wrapper_is_taken_off(tmp_path, content):
    torch.save(content, tmp_path / "model.ckpt")
    same(read_checkpoint(tmp_path / "model.ckpt"))


def test_safetensors_and_the_old_pickle_format_are_read_too(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    same(read_checkpoint(tmp_path / "model.safetensors"))
    torch.save({"state_dict": STATE}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    same(read_checkpoint(tmp_path / "old.ckpt"))


def test_a_checkpoint_is_mapped_not_read(tmp_path):
    torch.save({"state_dict": {"big": torch.zeros(16 * 2**20)}}, tmp_path / "model.ckpt")  # 64 MiB
    before = anonymous_memory()
    state = read_checkpoint(tmp_path / "model.ckpt")
    assert state["big"][-1] == 0
    assert anonymous_memory() - before < 16 * 2**20


def test_a_part_is_mapped_not_read_and_lies_where_it_would_once_a_model_takes_it_over(tmp_path):
    state = {"bias": torch.ones(1), "weight": torch.rand(1, 16 * 2**20)}  # 64 MiB that begin 4 bytes after a border
    write_part(tmp_path, "part", state)
    before = anonymous_memory()
    found = read_part(tmp_path, "part")
    assert found["weight"].data_ptr() % 64 and torch.equal(found["weight"][0, -9:], state["weight"][0, -9:])
    assert anonymous_memory() - before < 16 * 2**20
    with torch.device("meta"):
        module = torch.nn.Linear(16 * 2**20, 1)
    load_strict(module, found, "the entries")
    assert not module.weight.data_ptr() % 64 and torch.equal(module.weight, state["weight"])


def anonymous_memory() -> int:
    """Bytes of this process that no file backs."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def test_moving_averages_replace_the_weights_only_when_asked_for(tmp_path):
    # The ancestors drop the dots of averaged names; buffers and other parts have no average.
    averages = {"model_ema.diffusion_modelaweight": -STATE["model.diffusion_model.a.weight"]}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    torch.save({"state_dict": STATE | averages | counters}, tmp_path / "model.ckpt")
    same(read_checkpoint(tmp_path / "model.ckpt"))
    averaged = STATE | {"model.diffusion_model.a.weight": averages["model_ema.diffusion_modelaweight"]}
    same(read_checkpoint(tmp_path / "model.ckpt", ema=True), averaged)


def test_missing_or_foreign_moving_averages_are_errors(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "without.ckpt")
    with pytest.raises(CheckpointError, match="holds no moving averages"):
        read_checkpoint(tmp_path / "without.ckpt", ema=True)
    torch.save({"state_dict": STATE | {"model_ema.diffusion_modelz": torch.ones(1)}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match=r"averages entries that it does not hold: model_ema\.diffusion_modelz"):
        read_checkpoint(tmp_path / "foreign.ckpt", ema=True)


def make_folder(path):
    os.mkdir(path)


class Intruder:
    """Pickles as a call of a function that makes a folder, which a careless reader would execute."""

    def __init__(self, function, path):
        self.call = function, (str(path),)

    def __reduce__(self):
        return self.call


class Callback:
    """An object with attributes, as old trainers leave them in a checkpoint."""

    def __init__(self):
        self.best = 0.5


def test_programs_in_a_pickle_never_run_and_do_not_hide_the_weights(tmp_path):
    hook = Intruder(make_folder, tmp_path / "intruder")
    torch.save({"state_dict": STATE, "hook": hook, "callbacks": {Callback: Callback()}}, tmp_path / "model.ckpt")
    same(read_checkpoint(tmp_path / "model.ckpt"))
    assert not (tmp_path / "intruder").exists()


def test_a_pickle_that_calls_the_system_is_refused(tmp_path):
    torch.save({"state_dict": STATE, "hook": Intruder(os.mkdir, tmp_path / "intruder")}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"refers to (posix|nt)\.mkdir, which can run programs"):
        read_checkpoint(tmp_path / "model.ckpt")
    assert not (tmp_path / "intruder").exists()


def truncated_pickle(path):
    torch.save({"state_dict": {"a": torch.zeros(10_000)}}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def damaged_pickle(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", b"\x80\x02}no pickle")
        file.writestr("model/version", b"3\n")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated_pickle, r"is truncated \(20,000 bytes, no end record\): download it again"),
        (damaged_pickle, "is damaged or no PyTorch checkpoint"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "is a web page, not a checkpoint"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.write_bytes(b""), "is empty: download it again"),
        (lambda path: path.write_bytes(b"not a checkpoint at all"), "is a text file, not a checkpoint"),
        (lambda path: path.mkdir(), "is a folder without mp_rank_00_model_states.pt, so no checkpoint of DeepSpeed"),
        (lambda path: None, "there is no file"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no tensors .*'epoch'"),
        (lambda path: torch.save([torch.ones(1)], path), "holds a list, not a mapping"),
    ],
    ids=["truncated", "damaged", "html", "lfs", "empty", "text", "folder", "absent", "no tensors", "list"],
)
def test_each_wrong_file_gets_one_sentence(tmp_path, write, message):
    write(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "model.ckpt")
    assert "\n" not in str(caught.value)
    assert "model.ckpt" in str(caught.value)


def test_truncated_safetensors_are_refused(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is damaged or no safetensors file"):
        read_checkpoint(tmp_path / "cut.safetensors")


def test_differences_are_listed_by_kind_and_grouped():
    expected = {f"blocks.{i}.weight": torch.ones(2, 3) for i in range(12)} | {"norm.bias": torch.ones(2)}
    found = {f"blocks.{i}.weight": torch.ones(2, 3 + (i > 9)) for i in range(6, 12)} | {"extra": torch.ones(())}
    with pytest.raises(CheckpointError) as caught:
        check_entries(expected, found, "the entries of unet in model.ckpt")
    assert str(caught.value).splitlines() == [
        "the entries of unet in model.ckpt do not fit: 7 missing, 1 unexpected, 2 wrongly shaped",
        "  missing:",
        "    blocks.*.weight (6)",
        "    norm.bias",
        "  unexpected:",
        "    extra",
        "  wrongly shaped:",
        "    blocks.*.weight has 2x4, not 2x3 (2)",
    ]


def test_long_lists_of_differences_are_cut():
    with pytest.raises(CheckpointError, match="and 12 more groups"):
        check_entries({}, {letter: torch.ones(1) for letter in "abcdefghijklmnopqrst"}, "the entries")


def test_strict_loading_takes_tensors_over_without_a_copy():
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    load_strict(module, state, "the entries")
    assert module.weight.data_ptr() == state["weight"].data_ptr()
    with pytest.raises(CheckpointError, match="1 missing"):
        load_strict(module, {"weight": state["weight"]}, "the entries")


def on_meta(layout):
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


@pytest.mark.parametrize("model", full_layouts())
def test_families_are_told_from_full_size_layouts(model):
    entries = on_meta(full_layouts()[model])
    family = detect_family(entries)
    assert family.config == model
    assert family == detect_family(split_parts(entries, "model.ckpt")["unet"])
    assert family.unet == ("lvdm" if model.startswith("lvdm") else "videocrafter")


def test_the_1024_model_and_models_of_other_kinds_are_told_apart():
    layout = full_layouts()["videocrafter1_t2v_512"]
    prefix = "model.diffusion_model."
    with_fps = layout | {f"{prefix}fps_embedding.0.weight": [1280, 320]}
    assert detect_family(on_meta(with_fps)).config == "videocrafter1_t2v_1024"
    image_model = {name: shape for name, shape in layout.items() if "init_attn" not in name}
    assert detect_family(on_meta(image_model)) is None
    assert detect_family(on_meta({"encoder.weight": [3, 3]})) is None


def test_entries_are_sorted_by_part_and_foreign_ones_refused():
    unet = {"model.diffusion_model.x": torch.ones(1)}
    stored_schedule = {
        "betas": torch.ones(1),
        "sqrt_one_minus_alphas_cumprod": torch.ones(1),
        "scale_arr": torch.ones(1),
    }
    parts = split_parts(unet | stored_schedule | {"embedder.model.y": torch.ones(2)}, "model.ckpt")
    assert {part: list(entries) for part, entries in parts.items()} == {"unet": ["x"], "image_encoder": ["model.y"]}
    with pytest.raises(CheckpointError, match=r"model\.ckpt has 1 entries of no known part: adapter\.z"):
        split_parts(unet | {"adapter.z": torch.ones(1)}, "model.ckpt")
    with pytest.raises(CheckpointError, match=r"is no LVDM or VideoCrafter checkpoint: none of its 1 entries"):
        split_parts({"transformer.x": torch.ones(1)}, "model.ckpt")

"""The baselines: what they compute, that they learn, and that the base model is as before when they are done."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.action_integration import IntegrationConfig
from aicl.baselines.attention_guidance import AttentionGuidance, recorder, temporal_map
from aicl.baselines.attentions import PROJECTIONS, attentions, linear_layers
from aicl.baselines.low_rank import LowRankUpdates
from aicl.baselines.reference_tokens import JointBackbone, ReferenceTokens, TokensConfig, load_tokens, save_tokens
from aicl.cli import parse, reproduce
from aicl.evaluation.engine import Experiment
from aicl.evaluation.lossless import read_lossless
from aicl.evaluation.method import build_method
from aicl.evaluation.presets import Preset
from aicl.evaluation.results import read_result
from aicl.integrated_backbone import integrate
from aicl.pipeline import AICLPipeline
from lvdm import config as configs
from lvdm.diffusion import Condition, Denoiser, NoiseSchedule
from lvdm.errors import CheckpointError, ConfigError, UserError
from lvdm.files import write_json
from lvdm.training import train
from tests.aicl.evaluation_models import FRAMES, save_tiny_model
from tests.aicl.tiny_models import FAMILIES, randomise, tiny_unet, unet_inputs

KINDS = ["temporal", "spatial", "text"]
SIZE, VIDEOS = 32, 4  # in pixels; of each row


def loras(unet, count=2, kinds=KINDS, seed: int | None = 4) -> LowRankUpdates:
    made = LowRankUpdates(linear_layers(attentions(unet, kinds)), rank=2, alpha=4.0, count=count)
    if seed is not None:
        randomise(made, seed)
    return made


def assert_untouched(unet, before):
    assert list(unet.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert not any({"forward", "over_time"} & set(module.__dict__) for module in unet.modules())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_sample_has_its_own_lora(family):
    unet, (x, t, context) = tiny_unet(family), unet_inputs(b=3)
    before, base = copy.deepcopy(unet.state_dict()), unet(x, t, context)
    with loras(unet, seed=None).applied(unet, [0, 1, 0]):
        assert torch.equal(unet(x, t, context), base)  # untrained ones change nothing
    both = loras(unet)
    with both.applied(unet, [1, -1, 0]):
        mixed = unet(x, t, context)
        guided = unet(*(each.repeat(2, *[1] * (each.ndim - 1)) for each in (x, t, context)))
        branches = [Condition(context), Condition(context)]  # as samplers call it, which may share rows between them
        sampled = Denoiser(unet, NoiseSchedule.scaled_linear()).output(x, t, branches)
    for row, chosen in ((0, 1), (2, 0)):
        alone = loras(unet, count=1)
        alone.load_state_dict({name: value[chosen : chosen + 1] for name, value in both.state_dict().items()})
        with alone.applied(unet, [0]):
            one = unet(x[row : row + 1], t[row : row + 1], context[row : row + 1])
        torch.testing.assert_close(mixed[row], one[0], atol=1e-4, rtol=1e-4)
        assert (one[0] - base[row]).abs().mean() > 0.05
    torch.testing.assert_close(mixed[1], base[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided, mixed.repeat(2, 1, 1, 1, 1), atol=1e-4, rtol=1e-4)  # two branches
    torch.testing.assert_close(sampled, guided, atol=1e-4, rtol=1e-4)
    assert unet.shares_branches
    assert_untouched(unet, before)


@pytest.mark.parametrize("on_top", [lambda made: made, lambda made: made.backbone])
def test_what_wraps_a_backbone_shares_branches_as_it_does_at_the_moment(on_top):
    integrated = integrate(tiny_unet("lvdm"), IntegrationConfig(head_dim=16))
    assert integrated.shares_branches
    with loras(integrated).applied(on_top(integrated)):
        assert not integrated.shares_branches and not integrated.backbone.shares_branches
    assert integrated.shares_branches
    joint = JointBackbone(integrated.unpatch(), TokensConfig(rank=2))
    assert not joint.shares_branches  # rows of references follow those of all branches
    assert joint.unpatch().shares_branches


@torch.no_grad()
def test_a_lora_is_that_of_peft():
    peft = pytest.importorskip("peft")
    unet, inputs = tiny_unet("lvdm"), unet_inputs()
    ours = loras(unet, count=1, kinds=["temporal"])
    with ours.applied(unet, [0, 0]):
        expected = unet(*inputs)
    names = list(attentions(unet))
    theirs = peft.LoraConfig(r=2, lora_alpha=4.0, target_modules=[f"{n}.{part}" for n in names for part in PROJECTIONS])
    injected = peft.inject_adapter_in_model(theirs, unet)
    for name in names:
        for part in PROJECTIONS:
            layer, key = injected.get_submodule(f"{name}.{part}"), f"{name}.{part}".replace(".", "_")
            layer.lora_A["default"].weight.copy_(ours.down[key][0])
            layer.lora_B["default"].weight.copy_(ours.up[key][0])
    torch.testing.assert_close(injected(*inputs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_of_a_reference_count_as_further_frames(family):
    """What a query sees twice, at the same places, is what it sees once: at timestep 0 the video is its reference."""
    unet, (x, _, context) = tiny_unet(family), unet_inputs()
    t = torch.zeros(2, dtype=torch.int64)
    before, base = copy.deepcopy(unet.state_dict()), unet(x, t, context)
    joint = JointBackbone(unet, TokensConfig(rank=2, alpha=2.0))
    assert torch.equal(joint(x, t, context), base)
    for count in (1, 2):
        same = joint(x, t, context, references=ReferenceTokens(x[:, None].repeat(1, count, 1, 1, 1, 1), context))
        torch.testing.assert_close(same, base, atol=1e-4, rtol=1e-4)
    others = torch.randn(2, 2, *x.shape[1:], generator=torch.Generator().manual_seed(7))
    randomise(joint.lora, 4)
    read = joint(x, t, context, references=ReferenceTokens(others, context))
    assert (read - base).abs().mean() > 0.05
    turned = joint(x, t, context, references=ReferenceTokens(others.flip(1), context))
    torch.testing.assert_close(turned, read, atol=1e-4, rtol=1e-4)  # the order of references does not matter
    twice = [torch.cat([each, each]) for each in (x, t, context)]
    branches = joint(*twice, references=[(slice(2, 4), ReferenceTokens(others, context))])
    torch.testing.assert_close(branches[:2], base, atol=1e-4, rtol=1e-4)  # the unconditional branch is the base model's
    torch.testing.assert_close(branches[2:], read, atol=1e-4, rtol=1e-4)
    assert torch.equal(unet(x, t, context), base)  # a call past the wrapper
    with pytest.raises(ConfigError, match="reads reference tokens already"):
        JointBackbone(unet, TokensConfig())
    with pytest.raises(ConfigError, match="do not fit a video"):
        joint(x, t, context, references=ReferenceTokens(others[:, :, :, :2], context))
    joint.unpatch()
    assert_untouched(unet, before)


def test_tokens_are_kept_in_a_file_and_gradients_stay_in_them(tmp_path):
    unet, (x, t, context) = tiny_unet("lvdm"), unet_inputs()
    before = copy.deepcopy(unet.state_dict())
    joint = JointBackbone(unet, TokensConfig(rank=2, alpha=2.0))
    optimizer, shown = torch.optim.Adam(joint.lora.parameters(), 1e-2), ReferenceTokens(x[:, None].flip(3), context)
    losses = []
    for _ in range(4):
        loss = (joint(x, t, context, references=shown) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in joint.lora.parameters())
    path = tmp_path / "tokens.safetensors"
    save_tokens(path, joint, {"step": 4})
    with torch.no_grad():
        expected = joint(x, t, context, references=shown)
        joint.unpatch()
        assert_untouched(unet, before)
        assert torch.equal(load_tokens(path, unet)(x, t, context, references=shown), expected)
    other = tiny_unet("lvdm")
    randomise(other, seed=9)
    with pytest.raises(CheckpointError, match="another base model"):
        load_tokens(path, other)


def test_recorded_maps_are_those_of_the_layer_and_a_step_brings_them_nearer():
    unet, (x, t, context) = tiny_unet("lvdm"), unet_inputs()
    layer = next(iter(attentions(unet).values()))
    tokens = torch.randn(2, 4, 6, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = temporal_map(layer, layer.to_q(tokens), layer.to_k(tokens)).unflatten(3, (6, layer.heads))
        values = layer.to_v(tokens).unflatten(-1, (layer.heads, -1))
        rel = layer.relative_position_v(4, 4)
        mixed = torch.einsum("bijsh,bjshd->bishd", maps, values) + torch.einsum("bijsh,ijd->bishd", maps, rel)
        torch.testing.assert_close(layer.to_out(mixed.flatten(3)), layer.over_time(tokens), atol=1e-5, rtol=1e-4)
    unet.requires_grad_(False)
    for energy in ("attention", "features"):
        method = AttentionGuidance(energy=energy)
        with recorder(unet, energy) as record:
            with record.recording():
                unet(x.flip(2), t, context)
                target = record.taken()
            own = x.clone().requires_grad_()
            with record.recording():
                unet(own, t, context)
                distance = method.distance(record.taken(), target)
            assert method.distance(target, target).item() == 0 < distance.item()
            (gradient,) = torch.autograd.grad(distance, own)
            with record.recording():
                unet(x - 0.05 * gradient / gradient.square().mean().sqrt(), t, context)
                assert method.distance(record.taken(), target).item() < distance.item()
        assert not any(module._forward_hooks for module in unet.modules())


ROWS = [
    {"label": "lora", "method": {"kind": "lora", "steps": 8, "batch_size": 1, "rank": 2, "lr": 0.03, "at_once": 3},
     "references": 1, "reference_captions": "own"},
    {"label": "attention", "method": {"kind": "attention_guidance", "strength": 0.3}, "references": 1},
    {"label": "features", "method": {"kind": "attention_guidance", "energy": "features"}, "references": 1},
    {"label": "no pull", "method": {"kind": "attention_guidance", "strength": 0.0}, "references": 1},
    {"label": "tokens", "method": {"kind": "reference_tokens"}, "adapter": "tokens", "references": 1},
    {"label": "nowhere", "method": {"kind": "reference_tokens"}, "adapter": "nowhere", "references": 1},
    {"label": "aicl", "adapter": "tiny", "references": 1},
    {"label": "base"},
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A tiny model, its adapter, and reference tokens from a training of two steps."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models"), size=SIZE)
    config = configs.load("configs/puppets/reference_tokens.yaml")
    config["run"]["out"], config["base"]["path"] = str(folder), str(folder / "base")
    config["tokens"]["rank"] = 2
    config["data"] |= {"size": SIZE, "frames": FRAMES, "workers": 0, "programs": 32}
    config["training"] |= {"steps": 2, "batch_size": 2, "precision": "float32", "accelerator": "cpu"}
    config["logging"] = {"every": 1, "tensorboard": False}
    assert train(config) == 0
    return folder


def preset(models: Path, **changes) -> Preset:
    mapping = {
        "title": "Baselines",
        "benchmark": {"kind": "puppets", "size": SIZE, "frames": FRAMES, "shared_references": True},
        "rows": [{"model": "tiny", **row} for row in ROWS],
        "baseline": "aicl",
        "metrics": ["dynamic_degree"],
        "model": {"tiny": str(models / "base")},
        "adapter": {"tiny": str(models / "adapter.safetensors"), "tokens": str(models / "puppets_reference_tokens")},
        "videos": VIDEOS,
        "real": 4,
        "batch_size": 2,
    }
    return configs.from_mapping(Preset, mapping | changes)


def test_rows_of_a_table_are_made_by_baselines(models, tmp_path):
    experiment = Experiment(preset(models), tmp_path, "cpu")
    assert experiment.run() == (VIDEOS * 7, VIDEOS * 6 + 4)  # one row has the base model's videos
    text = experiment.write("baselines")
    assert "nowhere: not run, no adapter 'nowhere' is given" in text
    assert "lora: 4 LoRAs of" in text and "on 1 to 1 clips each, adapted in" in text
    result = read_result(tmp_path / "results" / "baselines-0-0.json")
    assert result.baseline == "aicl" and "dynamic_degree" in result.differences  # paired, on the same samples
    about = result.model["adaptation"]
    assert about["adapters"] == 4 and about["seconds"] > 0 and set(about["clips"].values()) == {1}
    assert sum(about["loss_last"].values()) < 0.95 * sum(about["loss_first"].values())
    run = experiment.tables[0]
    pixels = {
        row.label: torch.stack([read_lossless(made.path)[0] for made in run.made(row)])
        for row in run.rows
        if row.label != "nowhere"
    }
    samples = run.samples(0)
    pipe = AICLPipeline.from_pretrained(models / "base", device="cpu")
    for start in (0, 2):  # made after all the others, by the same model: nothing of them is left in it
        few = samples[start : start + 2]
        base = pipe([sample.prompt for sample in few], seed=[sample.seed for sample in few], progress=False)
        for label in ("base", "no pull"):
            assert torch.equal(pixels[label][start : start + 2], base)
    for label in ("lora", "attention", "features", "tokens"):
        assert (pixels[label] != pixels["base"]).float().mean() > 0.02, label

    gone = run.made(run.rows[0])[3].path
    before = gone.read_bytes()
    gone.unlink()
    kept = json.loads((gone.parent / "adaptation.json").read_text())
    assert experiment.run() == (1, 0) and gone.read_bytes() == before  # the same LoRAs, not trained again
    assert json.loads((gone.parent / "adaptation.json").read_text()) == kept


def test_a_row_that_diverges_is_named_and_the_others_are_measured(models, tmp_path):
    lora = {"label": "lora", "model": "tiny", "references": 1, "reference_captions": "own"}
    lora["method"] = {"kind": "lora", "steps": 3, "batch_size": 1, "lr": 1e30}
    rows, out = [lora, {"label": "base", "model": "tiny"}], tmp_path / "out"
    few = [f"benchmark.size={SIZE}", f"benchmark.frames={FRAMES}", "seeds=[0]", f"videos={VIDEOS}", "real=4"]
    arguments = ["--preset", str(tmp_path / "mine.yaml"), "--out", str(out), "--device", "cpu"]
    arguments += [f"model.tiny={models / 'base'}", *few]
    configs.save(tmp_path / "mine.yaml", {"title": "Mine", "rows": rows, "metrics": ["dynamic_degree"]})
    with pytest.raises(UserError, match=r"^'lora' of mine_puppets could not be made: why stands beneath the tables"):
        reproduce.main(parse("reproduce", arguments))
    text = (out / "mine_puppets.md").read_text()
    assert "| lora | not run |" in text and "| base | not run |" not in text
    assert re.search(r"- lora: not run, the LoRA of .+ has weights that are no numbers .+ rate of 1e\+30: lower", text)
    assert not [*out.glob("videos/*/*.safetensors"), *out.rglob("adaptation.json")]

    lora["method"]["lr"] = 1e-3  # another row: it can be made, as if an earlier run had failed
    again = Experiment(preset(models, rows=rows, baseline=None), out, "cpu")
    failure = again.tables[0].made(again.tables[0].rows[0])[0].path.parent / "failure.json"
    write_json(failure, {"why": "another day"})
    again.run()
    assert again.failed == [] and not failure.exists() and "not run" not in again.write("table")


def test_what_a_lora_learns_from_is_part_of_its_videos_key(models, tmp_path):
    rows = [{"model": "tiny", **row} for row in ROWS[:2]]
    own = {"benchmark": {"kind": "puppets", "size": SIZE, "frames": FRAMES}, "rows": rows, "baseline": None}
    few, more = (Experiment(preset(models, videos=n, **own), tmp_path, "cpu").tables[0] for n in (10, 20))
    lora, guidance = ([run.made(run.rows[i])[0].path for run in (few, more)] for i in (0, 1))
    assert lora[0] != lora[1] and guidance[0] == guidance[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": {"kind": "lorra"}, "references": 1}, "unknown method 'lorra': choose from"),
        ({"method": {"rank": 4}, "references": 1}, "needs a kind"),
        ({"method": {"kind": "lora", "ranks": 4}, "references": 1}, "unknown key 'ranks' in method lora"),
        ({"method": {"kind": "lora"}}, "a method is for generated videos with references"),
        ({"method": {"kind": "lora"}, "references": 1, "scale": 0.5}, "scale is a setting of AICL"),
        ({"method": {"kind": "attention_guidance", "until": 2.0}, "references": 1}, "until is 2.0"),
    ],
)
def test_what_does_not_fit_ends_in_a_sentence(models, tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        Experiment(preset(models, rows=[{"label": "x", "model": "tiny", **row}], baseline=None), tmp_path, "cpu")


def test_what_a_method_would_not_read_is_not_run(models, tmp_path):
    rows = [
        ROWS[1] | {"references": 2},
        ROWS[4] | {"reference_captions": "own"},
        ROWS[0] | {"references": 2},
        ROWS[1] | {"label": "captioned", "reference_captions": "own"},
    ]
    rows = [{"model": "tiny", **row} for row in rows]
    (run,) = Experiment(preset(models, rows=rows, baseline=None), tmp_path, "cpu").tables
    reasons = [run.obstacle(row) for row in run.rows]
    assert "reads one reference and the row shows 2" in reasons[0]
    assert "reads references under the prompt: leave reference_captions (own) out" in reasons[1]
    assert reasons[2:] == [None, None]


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({"kind": "same_action"}, "data.references unless references.kind is self"),
        ({"kind": "self", "caption_dropout": 0.1}, "are for task aicl: set them to 0"),
        ({"kind": "self", "wrong_share": 0.1}, "are for task aicl: set them to 0"),
        ({"kind": "self", "captions": "given"}, "no captions of references are read here"),
    ],
)
def test_reference_tokens_are_trained_on_the_pairs_that_their_config_names(models, tmp_path, references, message):
    config = configs.load("configs/puppets/reference_tokens.yaml")  # of self-pairs, which the models here had
    config["run"]["out"], config["base"]["path"], config["references"] = str(tmp_path), str(models / "base"), references
    with pytest.raises(ConfigError, match=message):
        train(config)


def test_networks_without_known_layers_are_refused():
    with pytest.raises(ConfigError, match="baselines work on this library's UNets"):
        attentions(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="no attention layers 'time'"):
        attentions(tiny_unet("lvdm"), ["time"])
    assert build_method({"kind": "lora", "layers": ["temporal", "spatial"]}).rank == 16

"""Training with CUDA graphs is the same training."""

from threading import Event, Thread

import pytest
import torch
from torch import nn

import aicl.tasks  # noqa: F401 (makes the tasks known)
from lvdm.training import train
from lvdm.training.checkpoints import list_checkpoints
from lvdm.training.graphs import Captured
from tests.aicl.test_training import aicl_config, save_base
from tests.lvdm.training_runs import MODEL, make_clips, tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS, LR = 8, 1e-2


def trained(tmp_path, task, **training):
    """The parameters after a few steps, in which Adam moves each by about STEPS * LR."""
    name = "_".join(f"{key}_{value}" for key, value in training.items())
    sections = {"run": {"name": name}, "training": {"accelerator": "gpu", "steps": STEPS, "lr": LR, **training}}
    if task == "base":
        config = tiny_config(tmp_path, "base", model={"config": MODEL, "train_text": True}, **sections)
    else:
        config = aicl_config(tmp_path, references=2, reference_dropout=0.5, **sections)
    assert train(config) == 0
    checkpoint = list_checkpoints(tmp_path / "runs" / name / "checkpoints")[-1]
    return torch.load(checkpoint / "state.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("task", ["base", "aicl"])
@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_move_as_without_graphs(tmp_path, task, compiled):
    make_clips(tmp_path / "clips")
    save_base(MODEL, tmp_path / "base")
    settings = {"ema": 0.9, "compile": compiled, "preview_every": 4, "previews": 1, "preview_steps": 2}
    plain, graphs = (trained(tmp_path, task, **settings, cuda_graphs=graphs) for graphs in (False, True))
    assert plain.keys() == graphs.keys()
    # Adam's steps have the size of the rate however small a gradient is, so a few that are rounding go astray.
    far = torch.cat([((plain[name] - graphs[name]).abs() > 0.2 * STEPS * LR).flatten() for name in plain])
    assert far.float().mean() < 0.01


def test_another_thread_pins_memory_during_the_capture():
    stop, errors, pinned = Event(), [], []

    def pin():
        try:
            while not stop.is_set():
                pinned.append(torch.empty(1000 + len(pinned)).pin_memory())
        except Exception as error:
            errors.append(error)

    network = nn.Sequential(*[nn.Linear(16, 16) for _ in range(500)]).cuda()
    captured, x = Captured(network), torch.randn(4, 16, device="cuda")
    thread = Thread(target=pin)
    thread.start()
    try:
        y = captured(x)
    finally:
        stop.set()
        thread.join()
    assert not errors and pinned
    torch.testing.assert_close(y, network(x))

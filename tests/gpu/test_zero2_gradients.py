"""ZeRO-2 on two devices gives the gradients of plain training on one, for the same global batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed"),
]


def gradients(folder: Path, name: str, *overrides: str) -> dict[str, torch.Tensor]:
    path = folder / f"{name}.safetensors"
    command = [sys.executable, str(ROOT / "tests/gpu/gradients.py"), str(path), *overrides]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(path)


@pytest.mark.parametrize("references", [1, 2])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("strategy", ["deepspeed_zero2", "deepspeed_zero2_offload"])
def test_gradients_are_those_of_one_device(tmp_path, references, checkpointing, strategy):
    common = [f"data.references={references}", f"training.gradient_checkpointing={checkpointing}"]
    plain = gradients(tmp_path, "plain", *common)
    spread = gradients(tmp_path, "spread", *common, f"training.strategy={strategy}", "training.devices=2")
    assert plain.keys() == spread.keys()
    largest = max(gradient.norm() for gradient in plain.values())
    # The floor is for a bias that a normalisation takes out again: its gradient is rounding (1e-7 of the largest) and
    # nothing else. The smallest true gradient is 9e-5 of the largest.
    errors = {
        name: (spread[name] - value).norm() / value.norm().clamp(min=1e-4 * largest) for name, value in plain.items()
    }
    worst = sorted(errors, key=errors.get)[-5:]
    assert errors[worst[-1]] < 1e-3, ", ".join(f"{name}: relative error {errors[name]:.2e}" for name in worst)


def test_gradients_in_bf16_point_the_same_way(tmp_path):
    plain = gradients(tmp_path, "plain")
    spread = gradients(
        tmp_path,
        "spread",
        "training.strategy=deepspeed_zero2_offload",
        "training.devices=2",
        "training.precision=bfloat16",
    )
    both = [torch.cat([part[name].flatten() for name in sorted(plain)]) for part in (plain, spread)]
    assert torch.cosine_similarity(*both, dim=0) > 0.98

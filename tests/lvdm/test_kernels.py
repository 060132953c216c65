"""Our kernels: what they compute, by Triton's interpreter, and that everything else takes the plain form."""

import importlib.util
import sys

import pytest
import torch

from lvdm.models import kernels
from lvdm.models.autoencoder import Norm
from lvdm.models.layers import GroupNorm
from tests import processes


def interpret():
    for name in [name for name in sys.modules if name.startswith("triton") and not name.startswith("triton._C")]:
        del sys.modules[name]  # PyTorch imported it, and it decided that it compiles
    from tests.lvdm.kernel_checks import check_all

    check_all()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")
def test_kernels_and_their_gradients_are_their_definitions(tmp_path):
    process = processes.start(interpret, log=tmp_path / "log", environment={"TRITON_INTERPRET": "1"})
    process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0 and said.split("\n")[-2] == "all kernels agree", said[-3000:]


def test_a_cpu_and_float32_take_the_plain_form():
    assert not kernels.usable(torch.zeros(1))
    assert not kernels.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert all(kernels.enabled(name) for name in kernels.NAMES)
    with kernels.only("sums"):
        assert [name for name in kernels.NAMES if kernels.enabled(name)] == ["sums"]
    assert all(kernels.enabled(name) for name in kernels.NAMES)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")
def test_features_too_large_for_a_grid_take_the_plain_form(monkeypatch):
    from lvdm.models.kernels import group_norm

    assert group_norm.fits(1920 * 1080, 512) and group_norm.fits(65535 * 32, 1023)
    assert not group_norm.fits(65535 * 32 + 1, 32)  # CUDA takes 65,535 blocks on an axis
    assert not group_norm.fits(2**21 - 32, 1025)  # places beyond 32 bits
    taken = []
    monkeypatch.setattr(kernels, "usable", lambda x: True)
    monkeypatch.setattr(group_norm, "group_norm", lambda x, *given: taken.append(tuple(x.shape)) or x.clone())
    monkeypatch.setattr(group_norm, "MAX_BLOCKS", 2)
    for norm, features in ((GroupNorm(32, rows=1), torch.randn(1, 4, 4, 5, 32)), (Norm(32), torch.randn(1, 32, 16, 5))):
        with kernels.only():
            plain = norm(features)
        assert torch.equal(norm(features), plain) and not taken
        norm(features[:, :3] if isinstance(norm, GroupNorm) else features[:, :, :12])
        assert taken.pop() == (1, 60, 32)


def test_some_kernels_are_for_values_without_gradients():
    x = torch.zeros(1, requires_grad=True)
    assert kernels.differentiated(None, x) and not kernels.differentiated(None, x.detach())
    with torch.no_grad():
        assert not kernels.differentiated(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there Triton works")
def test_where_triton_cannot_compile_pytorchs_kernels_are_used_and_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kernels._capable.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot be compiled here \(.*\): PyTorch's own are used"):
        assert not kernels._capable(0)  # there is no such device
    assert not kernels._capable(0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    kernels._capable.cache_clear()
    assert not kernels._capable(0)
    kernels._capable.cache_clear()


def test_compiled_code_takes_whether_kernels_work_as_a_constant():
    def marked(device):
        """As PyTorch marks it."""

    torch.compiler.assume_constant_result(marked)
    assert vars(marked) and vars(marked).items() <= vars(kernels._compiles).items()

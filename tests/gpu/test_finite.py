"""On a GPU: NaN in latents stops a sampling with its step's number, whether the host is ahead of the device or not."""

import pytest
import torch

from lvdm.errors import SamplingError
from lvdm.finite import FiniteWatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS = 12


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("wrong", [1, 5, STEPS, None])
def test_the_step_is_named_and_nothing_waits_for_the_device(wrong, ahead):
    work = torch.randn(4096, 4096, device="cuda")
    x, started = torch.ones(2, 3, device="cuda"), 0
    first = FiniteWatch()  # loads kernels and allocates pinned memory, for which the host would wait below
    first(1, STEPS, 0, x)
    work @ work, x * float("nan")
    torch.cuda.synchronize()
    del first
    watch = FiniteWatch()

    def sample():
        nonlocal started
        for step in range(1, STEPS + 1):
            started = step
            if ahead:
                for _ in range(20):  # tens of milliseconds a step, which the host does not wait for
                    work @ work
            else:
                torch.cuda.synchronize()
            watch(step, STEPS, 1000 - step, x * float("nan") if step == wrong else x)
        watch.finish()

    if wrong is None:
        sample()
        return
    with pytest.raises(SamplingError, match=f"wrong at step {wrong} of {STEPS}"):
        sample()
    assert not ahead or started == STEPS  # all steps were under way before the first verdict was there
    assert ahead or started <= wrong + 1

"""What is alive at once while a network is pretended to run, against what can be counted by hand."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from aicl.action_integration import IntegrationConfig
from aicl.base_memory import peak_bytes
from aicl.base_tables import counted_memory
from aicl.integrated_backbone import integrate
from lvdm.bases.sizes import Published
from lvdm.models.backbone import Compression

MEGABYTE = 4 * 512 * 512  # of the float32 matrices below


def peak(function) -> float:
    """In matrices."""
    with torch.device("meta"):
        return peak_bytes(function) / MEGABYTE


def matrix(**options) -> torch.Tensor:
    return torch.empty(512, 512, device="meta", **options)


def test_what_is_alive_at_once_is_counted():
    assert peak(lambda: matrix() + matrix()) == 3
    assert peak(lambda: [matrix() for _ in range(4)]) == 4

    def one_after_another():
        x = matrix()
        for _ in range(5):
            x = x + 1  # the one before is gone when the next but one is made

    assert peak(one_after_another) == 2
    there = matrix()
    assert peak(lambda: there.view(-1).add(1)) == 1  # nor do views, or what was there before


def test_recomputed_activations_are_not_kept():
    layers = nn.Sequential(*(nn.Sequential(nn.GELU(), nn.Sigmoid(), nn.Tanh()) for _ in range(8)))

    def forward(recompute: bool) -> None:
        x = matrix(requires_grad=True)
        for layer in layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)

    # the first input, and of each layer what sigmoid and tanh return; GELU keeps its input, which is there already
    assert peak(lambda: forward(False)) == 1 + 8 * 2
    assert peak(lambda: forward(True)) == 1 + 7 + 2  # inputs of all layers, and the inside of one


def test_the_memory_of_a_unet_grows_with_its_video():
    config = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
    }

    def memory(frames: int) -> tuple[int, int]:
        given = "tiny", "UNetMotionModel", Compression(8), "eps", frames, (256, 256), 5, 16, config
        published = Published(*given)
        with torch.device("meta"):
            blocks = IntegrationConfig(feature_channels=4, inner_width=16, head_dim=8)
            return counted_memory(published, integrate(published.build(), blocks))

    short, long = memory(4), memory(8)
    for one, other in zip(short, long):
        assert 1.7 < other / one < 2.05
    assert short[0] > short[1] / 2  # a training step keeps more than one of the two rows of a guided call


def test_attention_keeps_no_map():
    def attend() -> None:
        q = torch.empty(1, 1, 4096, 64, device="meta", requires_grad=True)
        F.scaled_dot_product_attention(q, q, q).sum().backward()

    assert peak(attend) < 10  # a map alone would be 64
    with torch.no_grad():
        x = torch.ones(1, 1, 2, 2)
        assert F.scaled_dot_product_attention(x, x, x).equal(x)  # is PyTorch's own again

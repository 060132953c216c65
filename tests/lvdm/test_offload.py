"""Small cards: which parts are on the device when, and that videos stay the same."""

import pytest
import torch
from torch import nn

from lvdm.models.components import build_components
from lvdm.offload import SLICE, Offload
from lvdm.pipeline import VideoPipeline
from tests.lvdm.published import model_config


class Recorded(nn.Module):
    def __init__(self, log, name):
        super().__init__()
        self.log, self.name = log, name

    def to(self, device):
        self.log.append(f"{self.name} to {device}")
        return self


def test_one_part_at_a_time():
    log = []
    text, unet = Recorded(log, "text"), Recorded(log, "unet")
    offload = Offload("meta")
    for part in (text, text, unet, text):
        offload.bring(part)
    assert log == ["text to meta", "text to cpu", "unet to meta", "unet to cpu", "text to meta"]


def test_a_part_that_does_not_fit_leaves_none_that_only_seems_to_be_there():
    class TooLarge(Recorded):
        def to(self, device):
            raise torch.OutOfMemoryError

    log = []
    unet, offload = Recorded(log, "unet"), Offload("meta")
    offload.bring(unet)
    with pytest.raises(torch.OutOfMemoryError):
        offload.bring(TooLarge(log, "vae"))
    offload.bring(unet)
    assert log == ["unet to meta", "unet to cpu", "unet to meta"]


@pytest.mark.parametrize("name", ["tiny_lvdm", "tiny_videocrafter_i2v"])
def test_videos_stay_the_same_and_each_step_brings_what_it_needs(name, monkeypatch):
    torch.manual_seed(0)
    config = model_config(name)
    pipe = VideoPipeline(build_components(config).eval(), config)
    image = torch.full((32, 32, 3), 99, dtype=torch.uint8) if pipe.takes_image else None
    expected = pipe("a dog runs", image=image, num_inference_steps=2, progress=False)
    pipe = VideoPipeline(pipe.components, config)  # which has not encoded the prompt yet
    brought, bring = [], Offload.bring
    names = {id(module): part for part, module in pipe.components.modules().items()} | {
        id(pipe.components.codec): "vae"
    }

    def recorded(self, *parts):
        brought.append("+".join(names[id(part)] for part in parts))
        bring(self, *parts)

    monkeypatch.setattr(Offload, "bring", recorded)
    pipe.enable_model_cpu_offload("cpu")
    assert torch.equal(pipe("a dog runs", image=image, num_inference_steps=2, progress=False), expected)
    first = ["text_encoder"] * 2 + ["image_encoder+image_resampler"] * 2 * pipe.takes_image
    assert brought == [*first, "unet", "vae"]
    pipe.to("cpu")
    assert pipe.offload is None and pipe.device == torch.device("cpu")


def test_slices_go_with_offloading_unless_another_number_was_asked_for():
    config = model_config("tiny_lvdm")
    pipe = VideoPipeline(build_components(config).eval(), config)
    codec = pipe.components.codec
    own = codec.slice_size
    assert own != SLICE
    pipe.enable_model_cpu_offload("cpu")
    assert codec.slice_size == SLICE
    pipe.enable_model_cpu_offload("cpu")
    pipe.to(dtype=torch.float32)
    assert codec.slice_size == SLICE
    pipe.to("cpu")
    assert codec.slice_size == own
    pipe.enable_vae_slicing(1)
    pipe.enable_model_cpu_offload("cpu")
    assert codec.slice_size == 1
    pipe.to("cpu")
    assert codec.slice_size == 1  # which was not asked for the sake of offloading
    pipe.disable_vae_slicing()
    assert codec.slice_size == own

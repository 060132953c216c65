"""Latent scale and shift, slices, tiles, and the memory that a large decode needs."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lvdm.errors import ConfigError, VideoError
from lvdm.models.autoencoder import AutoencoderKL
from lvdm.models.codec import LatentCodec
from tests.lvdm.test_autoencoder import PUBLISHED, build
from tests.parity import rebuild

FRAMES = (2, 3, 3, 16, 24)  # b, c, t, h, w


class Pixelwise(nn.Module):
    """Stands for an autoencoder that works on every latent cell alone, so that tiles must not change anything."""

    factor, embed_dim = 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.quant_conv = nn.Conv2d(1, 1, 1)  # tells the codec its dtype
        self.largest = 0

    def moments(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, *x.shape[2:])
        return F.avg_pool2d(x, 4).repeat(1, 2, 1, 1)

    def decode(self, z: Tensor) -> Tensor:
        self.largest = max(self.largest, *z.shape[2:])
        return F.interpolate(z, scale_factor=4, mode="nearest").square()


@pytest.mark.parametrize(
    ("scale", "shift"), [(0.18215, 0.0), (0.3, -0.5), ([0.1, 0.2, -0.3, 0.4], [1.0, -1.0, 0.0, 2.0])]
)
def test_latents_are_shifted_and_scaled(scale, shift):
    autoencoder, frames = build(), rebuild.inputs("frames", FRAMES)
    codec = LatentCodec(autoencoder, scale, shift)
    raw = autoencoder.encode(frames.transpose(1, 2).flatten(0, 1))
    factor, offset = (torch.tensor(value).expand(4).view(4, 1, 1, 1) for value in (scale, shift))
    mean = raw.mean.unflatten(0, (2, 3)).transpose(1, 2)
    latents = codec.encode(frames, sample=False)
    torch.testing.assert_close(latents, (mean - offset) * factor)
    posterior = codec.posterior(frames)
    torch.testing.assert_close(posterior.std, raw.std.unflatten(0, (2, 3)).transpose(1, 2) * factor.abs())
    assert torch.equal(
        codec.encode(frames, torch.Generator().manual_seed(1)), posterior.sample(torch.Generator().manual_seed(1))
    )
    decoded = autoencoder.decode(raw.mean).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(codec.decode(latents), decoded, rtol=0, atol=1e-4)


def test_scale_keeps_its_digits_in_bfloat16():
    codec = LatentCodec(build(), 0.18215).to(torch.bfloat16)
    frames = rebuild.inputs("frames", FRAMES)
    raw = codec.autoencoder.moments(frames.transpose(1, 2).flatten(0, 1).bfloat16()).chunk(2, dim=1)[0].float()
    mean = codec.posterior(frames).mean
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, raw.unflatten(0, (2, 3)).transpose(1, 2) * 0.18215)
    assert codec.encode(frames).dtype == codec.decode(mean).dtype == torch.bfloat16


def test_slices_change_nothing(monkeypatch):
    frames = rebuild.inputs("frames", FRAMES)
    whole = LatentCodec(build())
    sizes = []
    sliced = LatentCodec(build(), slice_size=1)
    moments = sliced.autoencoder.moments
    monkeypatch.setattr(sliced.autoencoder, "moments", lambda x: sizes.append(len(x)) or moments(x))
    monkeypatch.setattr("lvdm.models.codec.REFERENCE_PIXELS", 4 * 16 * 24)
    latents = sliced.encode(frames, sample=False)
    assert sizes == [4, 2]
    torch.testing.assert_close(latents, whole.encode(frames, sample=False))
    torch.testing.assert_close(sliced.decode(latents), whole.decode(latents), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 8), (5, 31), (20, 14), (17, 29)])
@pytest.mark.parametrize("tile", [4, 8, 11])
def test_tiles_cover_every_cell_once(size, tile):
    height, width = size
    codec, whole = LatentCodec(Pixelwise(), tile=tile), LatentCodec(Pixelwise())
    latents = rebuild.inputs("x", (1, 3, 2, height, width))
    torch.testing.assert_close(codec.decode(latents), whole.decode(latents))
    assert codec.autoencoder.largest <= tile
    codec.autoencoder.largest = 0
    frames = rebuild.inputs("frames", (1, 3, 2, 4 * height, 4 * width))
    torch.testing.assert_close(codec.encode(frames, sample=False), whole.encode(frames, sample=False))
    assert codec.autoencoder.largest <= 4 * tile


def test_seams_are_blended():
    """If every tile differs from its neighbours by a constant, the decoded frame still has no step."""

    class Offset(Pixelwise):
        calls = 0

        def decode(self, z: Tensor) -> Tensor:
            self.calls += 1
            return torch.full((len(z), 3, 4 * z.shape[2], 4 * z.shape[3]), float(self.calls))

    codec = LatentCodec(Offset(), tile=16)
    frames = codec.decode(torch.zeros(1, 3, 1, 16, 40))[0, 0, 0]
    assert codec.autoencoder.calls == 3
    steps = frames.diff(dim=1)
    assert frames[:, 0].eq(1).all() and frames[:, -1].eq(3).all()
    assert (steps >= 0).all() and steps.max() <= 1.5 / 16  # a rise over the 16 pixels of the overlap, or two at once


def test_tiles_are_close_to_the_whole_with_a_real_autoencoder():
    frames = F.interpolate(rebuild.inputs("frames", (1, 3, 4, 6)), (64, 96), mode="bicubic")[:, :, None]
    whole, tiled = LatentCodec(build()), LatentCodec(build(), tile=24)
    assert whole.factor == 2
    latents = whole.encode(frames, sample=False)
    error = (tiled.encode(frames, sample=False) - latents).abs().mean() / latents.abs().mean()
    assert 0 < error < 0.5  # normalisation sees other statistics in a tile; smooth random weights make that large
    assert tiled.decode(latents).shape == frames.shape


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all living storages that operations make, on the meta device too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, object] = {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.now += storage.nbytes()
                    self.seen[storage._cdata] = weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, storage: int, size: int) -> None:
        self.now -= size
        del self.seen[storage]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_16_large_frames_decode_in_under_8_gb(dtype):
    with torch.device("meta"):
        codec = LatentCodec(AutoencoderKL(PUBLISHED)).to(dtype)
        latents = torch.empty(1, 4, 16, 576 // 8, 1024 // 8)
    weights = sum(value.nbytes for value in codec.state_dict().values())
    with PeakMemory() as memory:
        frames = codec.decode(latents)
    assert frames.shape == (1, 3, 16, 576, 1024)
    assert memory.peak > frames.nbytes
    assert weights + memory.peak < 8e9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": [1.0, 2.0]}, "latents.scale lists 2 numbers for 4 latent channels"),
        ({"shift": [1.0] * 5}, "latents.shift lists 5 numbers"),
        ({"scale": 0.0}, "must not be zero"),
        ({"slice_size": 0}, "slice_size"),
        ({"tile": 3}, "tile"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        LatentCodec(build(), **options)


def test_frames_that_do_not_divide_are_refused():
    with pytest.raises(VideoError, match="24x15 pixels: both must be multiples of 2"):
        LatentCodec(build()).encode(torch.zeros(1, 3, 1, 15, 24))

"""I3D of Kinetics-400 as TorchScript: the network of FVD."""

import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from aicl.evaluation.evaluators.files import require_file
from aicl.evaluation.metric import register_evaluator
from lvdm.errors import CheckpointError
from lvdm.hashing import file_hash
from lvdm.video import to_pixels

I3D_FILE = "i3d_torchscript.pt"
I3D_SOURCE = (
    "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"  # linked from universome/fvd-comparison
)


class I3D:
    """The published FVD network, "features" (b, 400): its logits over the classes of Kinetics-400.

    `path`: the file, or a folder that holds it under its published name. Its forward pass takes 0..255 and, as asked
    here, scales to [-1, 1] and resizes to 224x224 (bilinear) itself. Raises CheckpointError where it is missing or no
    TorchScript file.
    """

    role, version, min_frames, dim = "i3d", 1, 10, 400
    name = "I3D of Kinetics-400 (8-bit frames, bilinear to 224x224)"

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str]) -> None:
        place = Path(path) / I3D_FILE if Path(path).is_dir() else Path(path)
        require_file(
            place,
            "the network of FVD",
            f"get it from {I3D_SOURCE} (the file that StyleGAN-V and fvd-comparison use), put it there, and compare "
            "its SHA-256, which every result states, with that of a colleague's copy",
        )
        self.hash, self.device = file_hash(place), torch.device(device)
        try:
            self.network = torch.jit.load(place, map_location=self.device).eval()
        except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{place} is no TorchScript file: the download broke off or is a web page") from error

    @torch.no_grad()
    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1], ten or more -> "features" (b, 400) float32."""
        videos = to_pixels(frames).movedim(-1, 1).to(self.device, torch.float32)  # (b, 3, t, h, w), 0..255
        return {"features": self.network(videos, rescale=True, resize=True, return_features=True).float()}


register_evaluator("i3d", I3D)

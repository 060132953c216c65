"""Small cards: the parts of a model lie in the CPU's memory, and come to the GPU one at a time, when they work."""

import torch
from torch import nn

SLICE = 2  # frames of 512x320 pixels that the autoencoder takes at once where parts are offloaded


class Offload:
    """Keeps only those parts on `device` that were brought there last. A sampling brings its UNet once.

    Latents, contexts and motion features stay on the device: they are small.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._present: tuple[nn.Module, ...] = ()

    def bring(self, *parts: nn.Module) -> None:
        """Have these parts on the device, and the ones that were there before in the CPU's memory."""
        if self._present == parts:
            return
        leaving, self._present = self._present, ()  # none is known to be there, should what follows fail
        for part in leaving:
            part.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what one part leaves is of another size than what the next one needs
        for part in parts:
            part.to(self.device)
        self._present = parts

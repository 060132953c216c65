"""Nodes that load an AICL pipeline, collect references and sample; ComfyUI's images are float (n, h, w, 3) in [0, 1].

A node is a class with INPUT_TYPES, RETURN_TYPES, FUNCTION and CATEGORY, as ComfyUI asks for; it imports AICL when it
runs, so that ComfyUI starts as fast as without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from aicl import AICLPipeline, Reference

MODEL, REFERENCES = "AICL_MODEL", "AICL_REFERENCES"
CATEGORY = "AICL"
LARGEST_SEED = 2**63 - 1


class LoadAICL:
    """A base model with an adapter: a folder, a name on the Hugging Face Hub, or a base model and an adapter file."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (MODEL,)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("model",)
    FUNCTION, CATEGORY = "load", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node takes."""
        return {
            "required": {
                "model": ("STRING", {"default": "checkpoints/puppets"}),
                "dtype": (["auto", "float32", "bfloat16", "float16"],),
                "offload": ("BOOLEAN", {"default": False}),
            },
            "optional": {"adapter": ("STRING", {"default": ""})},
        }

    def load(self, model: str, dtype: str, offload: bool, adapter: str = "") -> tuple[AICLPipeline]:
        """The pipeline, on the GPU where there is one."""
        import torch

        from aicl import AICLPipeline

        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        kind = kind if dtype == "auto" else getattr(torch, dtype)
        first = "cpu" if offload else device
        pipe = AICLPipeline.from_pretrained(model, adapter=adapter or None, device=first, torch_dtype=kind)
        if offload:
            pipe.enable_model_cpu_offload(device)
        return (pipe,)


class AICLReference:
    """One more reference, after those that are given: images in their order, or a video or motion features by path."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = (REFERENCES,)
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("references",)
    FUNCTION, CATEGORY = "add", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node takes."""
        return {
            "required": {"weight": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05})},
            "optional": {
                "images": ("IMAGE",),
                "path": ("STRING", {"default": ""}),
                "caption": ("STRING", {"default": "", "multiline": True}),
                "references": (REFERENCES,),
            },
        }

    def add(
        self,
        weight: float,
        images: Tensor | None = None,
        path: str = "",
        caption: str = "",
        references: list[Reference] | None = None,
    ) -> tuple[list[Reference]]:
        """The references with this one at their end. Raises ConfigError unless either images or a path is given."""
        from aicl import Reference
        from lvdm.errors import ConfigError

        if (images is None) == (not path.strip()):
            raise ConfigError("a reference is either images or a path: connect images, or write a path")
        video = Path(path.strip()) if images is None else images
        return ([*(references or []), Reference(video, caption.strip() or None, weight)],)


class AICLSample:
    """A video of the prompt whose action is shown by the references; without any, the base model's."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("IMAGE", "FLOAT")
    RETURN_NAMES: ClassVar[tuple[str, ...]] = ("images", "fps")
    FUNCTION, CATEGORY = "sample", CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node takes; 0 means the model's own default."""
        whole = {"default": 0, "min": 0, "max": 4096}
        return {
            "required": {
                "model": (MODEL,),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED}),
                "num_inference_steps": ("INT", dict(whole)),
                "guidance_scale": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1}),
                "scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 4.0, "step": 0.05}),
                "num_frames": ("INT", dict(whole)),
                "width": ("INT", dict(whole)),
                "height": ("INT", dict(whole)),
            },
            "optional": {
                "references": (REFERENCES,),
                "image": ("IMAGE",),
                "negative_prompt": ("STRING", {"default": "", "multiline": True}),
            },
        }

    def sample(
        self,
        model: AICLPipeline,
        prompt: str,
        seed: int,
        num_inference_steps: int,
        guidance_scale: float,
        scale: float,
        num_frames: int,
        width: int,
        height: int,
        references: list[Reference] | None = None,
        image: Tensor | None = None,
        negative_prompt: str = "",
    ) -> tuple[Tensor, float]:
        """Images float (t, h, w, 3) in [0, 1], and the rate (1/s) at which they are meant to be shown."""
        import torch

        chosen: dict[str, Any] = {
            "num_inference_steps": num_inference_steps or None,
            "guidance_scale": guidance_scale or None,
            "num_frames": num_frames or None,
            "width": width or None,
            "height": height or None,
            "negative_prompt": negative_prompt.strip() or None,
        }
        first = None if image is None else image[0].mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        video = model(
            prompt, references=references or (), image=first, seed=seed, scale=scale, output_type="np", **chosen
        )
        return torch.from_numpy(video[0]), float(model.defaults.save_fps)


NODE_CLASS_MAPPINGS = {"LoadAICL": LoadAICL, "AICLReference": AICLReference, "AICLSample": AICLSample}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadAICL": "Load AICL model",
    "AICLReference": "AICL reference",
    "AICLSample": "AICL sample",
}

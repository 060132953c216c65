"""LVDM as it is published."""

from lvdm.checkpoints.families import LAYOUTS, Family, UNetLayout, add_families, first_kernel
from lvdm.checkpoints.unet_layouts import SHARED_NAMES

BLOCK = {
    "attn1": "spatial_attn",
    "norm1": "spatial_norm",
    "attn1_tmp": "temporal_attn1",
    "norm4": "temporal_norm1",
    "attn2": "cross_attn",
    "norm2": "cross_norm",
    "attn2_tmp": "temporal_attn2",
    "norm5": "temporal_norm2",
    "norm3": "ff_norm",
}

add_families(
    Family("lvdm_t2v_256", "lvdm", "LVDM text-to-video", lambda entries: first_kernel(entries) == 5),
)
LAYOUTS.register("lvdm")(
    UNetLayout(
        names=BLOCK | SHARED_NAMES,
        holds=lambda entries: first_kernel(entries) == 5,  # spatial convolutions are stored as 1x3x3 kernels
        target="lvdm.models.modules.openaimodel3d.UNetModel",
        guidance_scale=15.0,
        save_fps=8,
    )
)

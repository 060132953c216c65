"""VideoCrafter 1 and 2, and what was distilled from them, as they are published."""

from lvdm.checkpoints.families import LAYOUTS, Entries, Family, UNetLayout, add_families, first_kernel, has
from lvdm.checkpoints.unet_layouts import SHARED_NAMES

TEMPORAL_CONV = {
    "temopral_conv.conv1.0": "temporal_conv.norms.0",
    "temopral_conv.conv1.2": "temporal_conv.convs.0",
    "temopral_conv.conv2.0": "temporal_conv.norms.1",
    "temopral_conv.conv2.3": "temporal_conv.convs.1",
    "temopral_conv.conv3.0": "temporal_conv.norms.2",
    "temopral_conv.conv3.3": "temporal_conv.convs.2",
    "temopral_conv.conv4.0": "temporal_conv.norms.3",
    "temopral_conv.conv4.3": "temporal_conv.convs.3",
}


def _is_ours(entries: Entries) -> bool:
    return first_kernel(entries) == 4


add_families(
    Family(
        "videocrafter1_i2v_512",
        "videocrafter",
        "VideoCrafter 1 image-to-video",
        lambda entries: _is_ours(entries) and has(entries, ".to_k_ip."),
    ),
    Family(
        "t2v_turbo_v2",
        "videocrafter",
        "T2V-Turbo v2, VideoCrafter 2 distilled to few steps",
        lambda entries: _is_ours(entries) and has(entries, "motion_cond_proj."),
    ),
    Family(
        "videocrafter2_t2v_512",
        "videocrafter",
        "VideoCrafter 2 text-to-video",
        lambda entries: _is_ours(entries) and has(entries, ".temopral_conv."),
    ),
    Family(
        "videocrafter1_t2v_1024",
        "videocrafter",
        "VideoCrafter 1 text-to-video, 576x1024",
        lambda entries: _is_ours(entries) and has(entries, "init_attn.") and has(entries, "fps_embedding."),
    ),
    Family(
        "videocrafter1_t2v_512",
        "videocrafter",
        "VideoCrafter 1 text-to-video, 320x512",
        lambda entries: _is_ours(entries) and has(entries, "init_attn."),  # image models have none
    ),
)
LAYOUTS.register("videocrafter")(
    UNetLayout(
        names={"init_attn.0": "input_blocks.0.1"} | TEMPORAL_CONV | SHARED_NAMES,
        holds=_is_ours,
        target="lvdm.modules.networks.openaimodel3d.UNetModel",
        guidance_scale=12.0,
        save_fps=10,
    )
)

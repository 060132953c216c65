"""Tiny pipelines of diffusers with random weights, one of each class that the library knows, built once."""

from functools import cache
from typing import Any

import torch

WORDS = ["<pad>", "</s>", "<unk>", "a", "person", "jumps", "red", "blue", "walks"]
WIDTH = 16  # of text features
SIZES = {  # frames, (height, width), both small
    "WanPipeline": (9, (32, 32)),
    "WanImageToVideoPipeline": (9, (32, 32)),
    "CogVideoXPipeline": (9, (32, 32)),
    "CogVideoXImageToVideoPipeline": (9, (32, 32)),
    "LTXPipeline": (9, (64, 64)),
    "HunyuanVideoPipeline": (9, (32, 32)),
    "MochiPipeline": (13, (32, 32)),
    "AnimateDiffPipeline": (4, (16, 16)),
    "TextToVideoSDPipeline": (4, (16, 16)),
    "StableVideoDiffusionPipeline": (4, (16, 16)),
}
NAMES = list(SIZES)


@cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **special)


def text_encoder(kind: str, **changes: Any) -> Any:
    if kind == "clip":
        from transformers import CLIPTextConfig, CLIPTextModel

        sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPTextConfig(vocab_size=len(WORDS), max_position_embeddings=77, eos_token_id=1, **sizes | changes)
        return CLIPTextModel(config)
    if kind == "llama":
        from transformers import LlamaConfig, LlamaModel

        sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2}
        return LlamaModel(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=512, pad_token_id=0, **sizes))
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": len(WORDS), "d_model": WIDTH, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return UMT5EncoderModel(UMT5Config(**sizes)) if kind == "umt5" else T5EncoderModel(T5Config(**sizes))


def image_encoder() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(image_size=224, patch_size=112, projection_dim=WIDTH, **sizes)
    return CLIPVisionModelWithProjection(config), CLIPImageProcessor()


def _transformer(name: str, **changes: Any) -> Any:
    import diffusers

    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
    own = {
        "WanTransformer3DModel": {
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": WIDTH,
            "freq_dim": 16,
            "ffn_dim": 32,
        },
        "CogVideoXTransformer3DModel": {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": WIDTH,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 9,
            "max_text_seq_length": 226,
        },
        "LTXVideoTransformer3DModel": {
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "caption_channels": WIDTH,
        },
        "HunyuanVideoTransformer3DModel": {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": WIDTH,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (4, 6, 6),
        },
        "MochiTransformer3DModel": {
            "in_channels": 4,
            "text_embed_dim": WIDTH,
            "pooled_projection_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": 16,
        },
    }[name]
    return getattr(diffusers, name)(**{**heads, **own, **changes})


def network(name: str, **changes: Any) -> Any:
    """A network by its class, with random weights, the same ones at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _randomised(_transformer(name, **changes) if "Transformer3D" in name else _unet(name, **changes))


def _unet(name: str, **changes: Any) -> Any:
    import diffusers

    common = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "sample_size": 8,
    }
    own = {
        "UNetMotionModel": {
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
        },
        "UNet3DConditionModel": {
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "attention_head_dim": 4,
        },
        "UNetSpatioTemporalConditionModel": {
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "num_attention_heads": (2, 4),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "num_frames": 4,
        },
    }[name]
    return getattr(diffusers, name)(**{**common, **own, **changes})


def _randomised(model: Any) -> Any:
    """Without the zeros at which some layers start; small, so that what passes through keeps its size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def autoencoder(name: str) -> Any:
    import diffusers

    if name.startswith("Wan"):
        return diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.1, 0.9, 1.2, 1.0],
        )
    if name.startswith("CogVideoX"):
        return diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    if name.startswith("Hunyuan"):
        return diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
        )
    if name.startswith("Mochi"):
        return diffusers.AutoencoderKLMochi(  # of 12 channels, which its pipeline expects
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        )
    if name.startswith("LTX"):
        return diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        )
    sizes: dict[str, Any] = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    down = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    if name.startswith("StableVideo"):
        return diffusers.AutoencoderKLTemporalDecoder(**down, **(sizes | {"block_out_channels": (32, 32)}))
    return diffusers.AutoencoderKL(up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, **down, **sizes)


@cache
def pipeline(name: str) -> Any:
    """A whole pipeline of diffusers, by its class."""
    import diffusers

    torch.manual_seed(0)
    parts: dict[str, Any] = {"vae": autoencoder(name).eval()}
    if name != "StableVideoDiffusionPipeline":
        kind = "umt5" if name.startswith("Wan") else "t5" if name.startswith(("Cog", "LTX", "Mochi")) else "clip"
        parts |= {"tokenizer": tokenizer(), "text_encoder": text_encoder(kind).eval()}
    if name.startswith("Hunyuan"):
        parts |= {"text_encoder": text_encoder("llama").eval(), "tokenizer_2": tokenizer()}
        parts["text_encoder_2"] = text_encoder("clip", hidden_size=8).eval()
    shifted = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if name.startswith("Wan"):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(**flow)
        image = name == "WanImageToVideoPipeline"
        changes = {"in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 32} if image else {}
        parts["transformer"] = network("WanTransformer3DModel", **changes)
        if image:
            parts["image_encoder"], parts["image_processor"] = image_encoder()
    elif name.startswith("CogVideoX"):
        parts["scheduler"] = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", snr_shift_scale=1.0)
        image = name == "CogVideoXImageToVideoPipeline"
        rotary = {"in_channels": 8, "use_rotary_positional_embeddings": True}
        parts["transformer"] = network("CogVideoXTransformer3DModel", **(rotary if image else {}))
    elif name.startswith("LTX"):
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        parts["transformer"] = network("LTXVideoTransformer3DModel")
    elif name.startswith("Hunyuan"):
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
        parts["transformer"] = network("HunyuanVideoTransformer3DModel")
    elif name.startswith("Mochi"):
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        parts |= {
            "transformer": network("MochiTransformer3DModel", in_channels=12),
            "force_zeros_for_empty_prompt": True,
        }
    elif name == "AnimateDiffPipeline":
        parts["scheduler"] = diffusers.EulerDiscreteScheduler(**shifted)
        parts |= {"unet": network("UNetMotionModel"), "motion_adapter": None}
    elif name == "TextToVideoSDPipeline":
        parts["scheduler"] = diffusers.DDIMScheduler(**shifted, clip_sample=False, set_alpha_to_one=False)
        parts["unet"] = network("UNet3DConditionModel")
    else:
        parts["scheduler"] = diffusers.EulerDiscreteScheduler(
            **shifted,
            prediction_type="v_prediction",
            timestep_type="continuous",
            timestep_spacing="leading",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        )
        parts["unet"] = network("UNetSpatioTemporalConditionModel")
        parts["image_encoder"], parts["feature_extractor"] = image_encoder()
    pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe

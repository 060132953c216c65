"""What the tests of the web demo serve: two tiny models with random weights, and clips beside one of them."""

from pathlib import Path

import torch

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import ActionPrism, PrismConfig
from aicl.integrated_backbone import integrate
from aicl.pipeline import AICLPipeline
from aicl.puppets.captions import vocabulary
from lvdm import config as configs
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from tests.aicl.study_samples import write_sample
from tests.aicl.test_pipeline import MODELS, PRISM
from tests.aicl.tiny_models import randomise

CAPTIONS = (
    "a person in a red shirt and blue trousers is hammering in front of a green background",
    "a person in a blue shirt and red trousers is hammering slowly in front of a red background",
    "a person in a green shirt and red trousers is rowing in front of a blue background",
    "a tall person in a white shirt and red trousers is hammering in front of a grey background",
)
PROMPT = "a short person in a black shirt and blue trousers is hammering in front of a brown background"


def write_model(folder: Path, model: str = "tiny_videocrafter") -> Path:
    """A tiny model that knows the puppet world's words, and reads references."""
    content = configs.load(MODELS / f"{model}.yaml")
    content["text"]["tokenizer"] = list(vocabulary())
    config = configs.from_mapping(ModelConfig, content)
    torch.manual_seed(0)
    components = build_components(config).eval()
    prism, integrated = ActionPrism(PrismConfig(**PRISM)), integrate(components.unet, IntegrationConfig(head_dim=16))
    for seed, part in enumerate((components.unet, prism, integrated.blocks)):
        randomise(part, seed)
    AICLPipeline(VideoPipeline(components, config), prism, integrated).save_pretrained(folder)
    return folder


def write_models(folder: Path) -> Path:
    """A folder with a text-to-video model and its example clips, and an image-to-video model."""
    examples = write_model(folder / "a_small").joinpath("examples")
    write_model(folder / "b_images", "tiny_videocrafter_i2v")
    rows = ["file,caption"]
    for number, caption in enumerate(CAPTIONS):
        write_sample(examples / f"clip_{number}.mp4", number)
        rows.append(f"clip_{number}.mp4,{caption}")
    (examples / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder

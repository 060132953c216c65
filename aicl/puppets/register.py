"""Makes the puppet world known: benchmark, evaluators, metrics, data, the trainings of its networks, and prompts."""

from collections.abc import Mapping
from typing import Any

from aicl.evaluation.benchmark import register_benchmark
from aicl.evaluation.metric import register_evaluator
from aicl.prompt_templates import PROMPT_TEMPLATES
from aicl.puppets import (
    evaluators,  # noqa: F401 (registers their trainings)
    figure,  # noqa: F401 (registers its evaluator and metric)
    metrics,  # noqa: F401 (registers them)
)
from aicl.puppets.benchmark import PuppetBenchmark
from aicl.puppets.data import PuppetConfig, PuppetDataModule
from aicl.puppets.measuring import PuppetClassifierEvaluator, PuppetCLIPEvaluator
from aicl.puppets.prompts import prompt_template
from lvdm import config as configs
from lvdm.data.datamodule import EndlessDataModule
from lvdm.training.tasks import DATA_MODULES

register_benchmark("puppets", PuppetBenchmark)
register_evaluator("puppets_classifier", PuppetClassifierEvaluator)
register_evaluator("puppets_clip", PuppetCLIPEvaluator)
PROMPT_TEMPLATES.register("puppets")(prompt_template())


@DATA_MODULES.register("puppets")
def puppet_data(section: Mapping[str, Any], batch_size: int, seed: int) -> EndlessDataModule:
    """Data of kind "puppets": clips drawn as they are needed, see `aicl.puppets.data.PuppetConfig` for the section."""
    section = {name: value for name, value in section.items() if name != "kind"}
    return PuppetDataModule(configs.from_mapping(PuppetConfig, section, where="data"), batch_size, seed)

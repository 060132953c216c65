"""Makes the tasks and the data of this package known to `lvdm.training`; importing it is enough."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

import aicl.puppets.evaluators
import aicl.training_task  # noqa: F401 (both register their tasks)
from aicl.puppets.data import PuppetConfig, PuppetDataModule
from lvdm import config as configs
from lvdm.training.tasks import DATA_MODULES


@DATA_MODULES.register("puppets")
def puppet_data(section: Mapping[str, Any], batch_size: int, seed: int) -> pl.LightningDataModule:
    """Data of kind "puppets": clips drawn as they are needed, see `aicl.puppets.data.PuppetConfig` for the section."""
    section = {name: value for name, value in section.items() if name != "kind"}
    return PuppetDataModule(configs.from_mapping(PuppetConfig, section, where="data"), batch_size, seed)

"""Which folders are packages; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["aicl", "aicl.*", "lvdm", "lvdm.*"]), "lvdm.configs"],
    package_dir={"lvdm.configs": "configs"},  # where lvdm.config.shipped_configs looks for them
)

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="aicl",
    version="0.1.0",
    description="Action In-Context Learning for video diffusion models (arXiv 2403.11535)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["aicl", "aicl.*", "lvdm", "lvdm.*"]),
    include_package_data=True,
    package_data={"": ["*.css", "*.csv", "*.js", "*.json", "*.txt", "*.yaml"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "pytorch-lightning>=2.5,!=2.6.2,!=2.6.3",
        "open_clip_torch>=2.30",
        "omegaconf>=2.3",
        "safetensors>=0.4.5",
        "einops>=0.8",
        "numpy>=1.26",
        "scipy>=1.12",
        "pillow>=10",
        "av>=17",
        "decord>=0.6; platform_machine == 'x86_64' and sys_platform == 'linux'",
        "lemminflect>=0.2.3",
        "tensorboard>=2.16",
        "tqdm>=4.66",
    ],
    extras_require={
        "deepspeed": ["deepspeed>=0.18.3"],  # 0.17.6 to 0.18.2 computed wrong ZeRO-2 gradients
        "xformers": ["xformers>=0.0.35"],
        "demo": ["gradio>=6.20"],
        "wandb": ["wandb>=0.17"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
            "diffusers>=0.31",
            "transformers>=4.46",
            "torchmetrics>=1.4",
        ],
    },
)

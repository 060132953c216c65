"""Pages of the site that are made from the code: commands, settings, the Python reference, and the READMEs."""

import dataclasses
import importlib
import inspect
import io
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mkdocs_gen_files

from aicl.cli import VERBS, verb_module

# page of the site <- file of the repository
PAGES = {
    "index.md": "README.md",
    "checkpoints/README.md": "checkpoints/README.md",
    "checkpoints/puppets/README.md": "checkpoints/puppets/README.md",
    "checkpoints/puppets_i2v/README.md": "checkpoints/puppets_i2v/README.md",
}
# title, what the section is for, module:class
SETTINGS = (
    ("sampling", "Options of calls, of `aicl sample` and of prompts files.", "aicl.options:SamplingOptions"),
    ("model", "Which model a command runs, and on what.", "aicl.options:ModelOptions"),
    ("task aicl", "Sections of a training of prism and integration.", "aicl.training_task:AICLSections"),
    ("task base", "Sections of a training of a base model.", "lvdm.training.task_base:BaseSections"),
    ("run", "Which task is trained, and where its files go.", "lvdm.training.settings:RunSettings"),
    ("training", "Length, optimiser, devices, memory.", "lvdm.training.settings:TrainingSettings"),
    ("logging", "What is written while a training runs.", "lvdm.training.settings:LoggingSettings"),
    ("data", "Which videos, and what is taken from them.", "lvdm.data.manifest:DataConfig"),
    ("data.clip", "What a training clip is.", "lvdm.data.dataset:ClipConfig"),
    ("data.clip.augmentation", "What varies from sample to sample.", "lvdm.data.sampling:AugmentationConfig"),
    ("references", "What accompanies a training sample.", "aicl.training_pairs:ReferenceSettings"),
    ("references.changes", "How a clip is changed that is its own reference.", "lvdm.data.self_pairs:SelfPairConfig"),
    ("prism", "Sizes and variants of the Action Prism.", "aicl.action_prism:PrismConfig"),
    ("integration", "How the UNet reads R.", "aicl.action_integration:IntegrationConfig"),
    (
        "preset",
        "What `aicl reproduce` measures, `configs/tables` and `configs/benchmarks`.",
        "aicl.evaluation.presets:Preset",
    ),
    ("preset: rows", "Whose videos a row of a table shows.", "aicl.evaluation.row:Row"),
    ("model config", "A base model, `configs/models/*.yaml`.", "lvdm.models.components:ModelConfig"),
    (
        "model config: defaults",
        "What sampling uses unless told otherwise.",
        "lvdm.models.components:GenerationDefaults",
    ),
)
# what a user imports: module -> names; None is all that the module lists as public
API = {
    "aicl": None,
    "lvdm.pipeline": ("VideoPipeline",),
    "lvdm.checkpoints": None,
    "lvdm.diffusion": None,
    "lvdm.video": None,
    "lvdm.data": ("read_records", "ClipDataset", "ClipConfig"),
    "aicl.action_library": ("ActionLibrary", "Found", "add_clips"),
    "aicl.action_embeddings": ("Embedder",),
    "aicl.reference_domain": ("ReferenceDomain", "ReferenceCheck"),
    "aicl.calibration": ("calibrate",),
}


def write(path: str, text: str) -> None:
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def commands() -> str:
    lines = ["# Commands", "", "`aicl VERB` and, in a checkout, `python scripts/NAME.py` are the same code.", ""]
    for verb, about in VERBS.items():
        usage = verb_module(verb).parser().format_help().rstrip()
        lines += [f"## aicl {verb}", "", f"{about[0].upper()}{about[1:]}.", "", "```text", usage, "```", ""]
    return "\n".join(lines)


def settings() -> str:
    lines = ["# Settings", "", "A config is YAML; `key=value` on the command line changes a setting for one run.", ""]
    for title, about, place in SETTINGS:
        module, _, name = place.partition(":")
        cls = getattr(importlib.import_module(module), name)
        text = inspect.cleandoc(cls.__doc__ or "")
        lines += [f"## {title}", "", about, "", text, "", "| setting | type | default | |", "| --- | --- | --- | --- |"]
        comments = dict(trailing_comments(cls))
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind = type_name(hints[field.name]).replace("|", "\\|")
            about = str(field.metadata.get("help") or comments.get(field.name, "")).replace("|", "\\|")
            lines.append(f"| `{field.name}` | {kind} | {default(field)} | {about} |")
        lines.append("")
    return "\n".join(lines)


def trailing_comments(cls: type) -> Iterator[tuple[str, str]]:
    """(field, the comment at the end of its line) of a dataclass and of those that it inherits from."""
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.getsource(base)).readline))
        names = {token.start[0]: token.string for token in reversed(tokens) if token.type == tokenize.NAME}
        for token in tokens:
            if token.type == tokenize.COMMENT and token.start[0] in names:
                yield names[token.start[0]], token.string.lstrip("# ").replace("|", "\\|")


def type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{option}`" for option in typing.get_args(kind))
    return str(getattr(kind, "__name__", kind) if isinstance(kind, type) else kind).replace("typing.", "")


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return f"`{type(made).__name__}()`" if dataclasses.is_dataclass(made) else f"`{made!r}`"
    return "required"


def api() -> str:
    lines = ["# Python", ""]
    for module, names in API.items():
        imported = importlib.import_module(module)
        lines += [f"## {module}", "", inspect.cleandoc(imported.__doc__ or ""), ""]
        for name in names or imported.__all__:
            home = getattr(imported, name)
            if inspect.isclass(home) or inspect.isfunction(home):
                lines += [f"::: {home.__module__}.{home.__qualname__}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


for page, source in PAGES.items():
    write(page, Path(source).read_text(encoding="utf-8"))
    mkdocs_gen_files.set_edit_path(page, source)
write("reference/commands.md", commands())
write("reference/settings.md", settings())
write("reference/api.md", api())

"""The import rule, scripts -> aicl -> lvdm, and the size limit, over every file of the project."""

import ast
from pathlib import Path

import pytest

import aicl

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("lvdm", "aicl", "scripts", "tests")
FILES = [ROOT / "setup.py", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
MAX_LINES = 400
FORBIDDEN = {  # what the modules of each package must not import, at any depth
    "lvdm": ("aicl", "scripts", "tests"),
    "lvdm.checkpoints": ("lvdm.training", "lvdm.data"),
    "lvdm.models": ("lvdm.training", "lvdm.data", "lvdm.pipeline"),
    "lvdm.diffusion": ("lvdm.training", "lvdm.data", "lvdm.pipeline"),
    "aicl": ("scripts", "tests"),
    "aicl.pipeline": ("lvdm.training",),
    "aicl.sampling_models": ("lvdm.training",),
    "aicl.sampling_jobs": ("lvdm.training",),
    "aicl.evaluation": ("lvdm.training",),
    "aicl.cli.sample": ("lvdm.training",),
    "scripts": ("tests",),
}


def imported(source: str, package: str) -> set[str]:
    """Every module that a source text imports anywhere, dotted and absolute; `package` is the one it lives in."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return names


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def violations(module: str, package: str, source: str) -> list[str]:
    banned = [name for holder, names in FORBIDDEN.items() if inside(module, holder) for name in names]
    return [name for name in sorted(imported(source, package)) if any(inside(name, ban) for ban in banned)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_keeps_the_import_rule_and_the_size_limit(path):
    source, module = path.read_text(encoding="utf-8"), module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    assert violations(module, package, source) == []
    assert len(source.splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("lvdm.pipeline", "import aicl.action_prism", ["aicl.action_prism"]),
        ("lvdm.pipeline", "def f():\n    from aicl import action_prism", ["aicl", "aicl.action_prism"]),
        ("lvdm.models.unet", "from lvdm import data", ["lvdm.data"]),
        ("lvdm.models.unet", "from ..training import run", ["lvdm.training", "lvdm.training.run"]),
        ("lvdm.models.unet", "from . import layers\nfrom lvdm.diffusion import schedule\nimport lvdm.database", []),
        ("aicl.action_prism", "from lvdm.models import attention\nimport scripts.train", ["scripts.train"]),
        ("scripts.train", "import aicl.training, lvdm.training", []),
    ],
)
def test_the_rule_sees_every_way_of_importing(module, source, found):
    assert violations(module, module.rpartition(".")[0], source) == found


def test_type_checkers_see_the_names_that_are_imported_when_first_used():
    source = ast.parse((ROOT / "aicl/__init__.py").read_text(encoding="utf-8"))
    [shown] = [node for node in source.body if isinstance(node, ast.If)]
    found = {(node.module, each.asname) for node in shown.body for each in node.names if each.asname == each.name}
    assert found == {(f"aicl.{module}", name) for name, module in aicl._HOME_OF.items()}

"""The tree in docs/design.md is the tree on disk."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_LISTED = {"__init__.py", "__main__.py", "__pycache__"}


def sections() -> dict[str, str]:
    """Folder -> the lines of the tree that describe it, for the folders at the top level."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    tree = re.search(r"## Layout\n\n```\n(.*?)```", text, flags=re.S)
    assert tree is not None
    parts = re.split(r"^(\w+)/", tree[1], flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2]))


@pytest.mark.parametrize("package", ["lvdm", "aicl"])
def test_every_module_and_folder_of_a_package_stands_in_the_tree(package):
    folder, text = ROOT / package, sections()[package]
    present = {path.name for path in folder.glob("*.py")} | {f"{p.parent.name}/" for p in folder.glob("*/__init__.py")}
    named = set(re.findall(r"(?<![\w/])(\w+\.py|\w+/)", text))
    assert present - NOT_LISTED <= named, "modules that the tree does not name"
    gone = {name for name in named if not (folder / name).exists() and not list(folder.glob(f"*/{name}"))}
    assert not gone, "names of the tree that are not there"


def test_the_concepts_of_the_paper_are_where_the_table_says():
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8").split("## Section III")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][2:]
    assert {number for concept, *_ in rows for number in re.findall(r"[4-9]", concept)} >= set("456789")
    for _, files, names in rows:
        code = "".join((ROOT / path).read_text(encoding="utf-8") for path in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"`([^`]+)`", names):
            for part in name.split("."):
                assert re.search(rf"^ *(class|def) {part}\b", code, flags=re.M), f"{name} is not in {files}"


def test_the_folders_at_the_top_are_those_of_the_tree():
    assert all((ROOT / name).is_dir() for name in sections())
    assert set(sections()) >= {"lvdm", "aicl", "configs", "scripts", "checkpoints", "tests"}

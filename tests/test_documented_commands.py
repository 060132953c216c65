"""Every command that README, docs and help texts print is accepted, and those that a CPU can run quickly are run."""

import ast
import re
import runpy
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from aicl.cli import VERBS, parse, verb_module
from aicl.training_pairs import ReferenceSettings
from lvdm import config as configs
from lvdm.data import SelfPairConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "checkpoints").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MODULES = [Path(str(verb_module(verb).__file__)) for verb in VERBS]
VERB_OF_SCRIPT = {
    path.stem: match[1]
    for path in (ROOT / "scripts").glob("*.py")
    if (match := re.search(r'run_verb\("([\w-]+)"\)', path.read_text(encoding="utf-8")))
}
STARTS = re.compile(
    r"^(?:srun |\$ )?(?:(?:torchrun|accelerate launch)\b.*? )?(?:-m aicl|aicl|\S*bin/aicl|python -m aicl) "
)
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))


@dataclass(frozen=True)
class Command:
    """One `aicl VERB ARGUMENTS` of a page."""

    where: str
    verb: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.verb}"


def commands(text: str, where: str) -> list[Command]:
    """The commands of shell lines: continued lines joined, loops unrolled, comments and what comes after && dropped."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in unrolled(line.strip()):
            part = re.sub(r"python scripts/(\w+)\.py", lambda m: f"aicl {VERB_OF_SCRIPT.get(m[1], m[1])}", part)
            part = re.sub(r" scripts/(\w+)\.py", lambda m: f" -m aicl {VERB_OF_SCRIPT.get(m[1], m[1])}", part)
            if start := STARTS.match(part):
                verb, *arguments = shlex.split(part[start.end() :], comments=True)
                if re.fullmatch(r"[a-z][a-z-]*", verb):  # no placeholder such as VERB
                    found.append(Command(where, verb, tuple(arguments)))
    return found


def unrolled(line: str) -> list[str]:
    """The commands of a line, a `for` loop's body once for each of its words."""
    loop = re.match(r"for (\w+) in ([^;]+); *do (.*?);? *done", line)
    if not loop:
        return re.split(r" (?:&&|\|\||;) ", line)
    name, words, body = loop.groups()
    return [
        re.sub(rf"\$\{{?{name}\}}?", word, part)
        for word in words.split()
        for part in re.split(r" (?:&&|\|\||;) ", body.strip())
    ]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def documented() -> list[Command]:
    """The commands of all pages, configs and help texts: of a page's blocks first, then those in its sentences."""
    found = []
    for page in PAGES:
        where, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        spans = re.findall(r"`(aicl [^`\n]+)`", text)
        found += [command for part in (*blocks(page, "bash"), *spans) for command in commands(part, where)]
    for config in CONFIGS:  # their comments say how they are run
        shown = re.findall(r"^#  +(aicl .*)$", config.read_text(encoding="utf-8"), flags=re.M)
        found += commands("\n".join(shown), config.relative_to(ROOT).as_posix())
    for module in MODULES:
        help_text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        found += commands(help_text, module.relative_to(ROOT).as_posix())
    return found


DOCUMENTED = documented()


def test_the_pages_have_commands_of_nearly_every_verb():
    assert len(DOCUMENTED) > 60
    assert {command.verb for command in DOCUMENTED} >= set(VERBS) - {"doctor"}


@pytest.mark.parametrize("command", sorted(set(DOCUMENTED), key=str), ids=str)
def test_its_verb_accepts_every_command(command, capsys):
    assert command.verb in VERBS
    arguments = [each for each in command.arguments if each != "..."]
    if "..." in command.arguments or any(each.isupper() for each in arguments) or inline_mention(arguments):
        return  # prose that leaves something out
    args = parse(command.verb, arguments)
    if command.verb == "train":
        import aicl.tasks  # noqa: F401 (makes the tasks known)
        from lvdm.training import config_schema

        path = configs.find(args.config)
        assert path.is_file() or "$" in args.config, f"{args.config} is not there"
        if path.is_file():
            configs.load(path, args.overrides, schema=config_schema())
    if getattr(args, "config", None) and command.verb in ("check-data", "cache"):
        assert configs.find(args.config).is_file()


def inline_mention(arguments: list[str]) -> bool:
    """Whether this only names a verb or an option in a sentence, such as `aicl sample --compare`."""
    return len(arguments) <= 1


def test_make_targets_and_files_that_pages_name_are_there():
    for page in (page for page in PAGES if page != ROOT / "checkpoints/README.md"):  # it names files of others
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"^make (\w+)", "\n".join(blocks(page, "bash")), flags=re.M):
            assert target in TARGETS, f"{page}: make {target}"
        for name in re.findall(r"`((?:configs|scripts|aicl|lvdm|tests)/[a-z0-9_/.-]+\.(?:yaml|py))`", text):
            assert (ROOT / name).is_file(), f"{page} names {name}"


def test_links_lead_to_files_and_every_page_is_in_the_menu_of_the_site():
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if "://" not in target and not target.startswith("#"):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page} links to {target}"
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f": {name}\n" in menu, f"mkdocs.yml has no place for {name}"


def test_an_image_that_is_a_link_leads_to_the_page_of_the_site():
    hook = runpy.run_path(str(ROOT / "docs/site/links.py"))["on_page_markdown"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    files = SimpleNamespace(get_file_from_path=lambda path: (ROOT / "docs" / path).exists())
    site = SimpleNamespace(config_file_path=str(ROOT / "mkdocs.yml"))
    text = hook("[![The demo](docs/figures/web_demo.png)](docs/web_demo.md#for), [tests](tests)", page, site, files)
    assert text == "[![The demo](figures/web_demo.png)](web_demo.md#for), `tests`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_pages_compiles_and_imports_what_is_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("aicl", "lvdm"):
                module = __import__(node.module, fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page}: {node.module}"


def test_the_recipe_names_every_setting_of_pairs():
    page = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    settings = {f"references.{each.name}" for each in fields(ReferenceSettings)} - {"references.captions"}  # of puppets
    assert all(name in page for name in settings | {f"`{each.name}`" for each in fields(SelfPairConfig)})


def quick(command: Command) -> list[str] | None:
    """The arguments with which a CPU runs a command in seconds; None for one that needs a GPU, weights or data."""
    arguments = list(command.arguments)
    if command.verb == "make-puppets" and arguments:
        return [*arguments, "--clips", "24"]
    if command.verb == "index" and not any(each.endswith(".json") for each in arguments):
        return None  # a library with vectors: tests/aicl/test_action_library.py makes one with a tiny model
    if command.verb in ("check-data", "index"):
        return arguments if {"data/puppets", "my_videos"} & set(arguments) else None
    if command.verb == "train":
        steps = ["training.steps=1", "training.preview_every=null"]
        return [*arguments, *steps] if "configs/tiny/" in str(arguments[1:2]) else None
    if command.verb == "sample" and any(re.search(r"puppets(_i2v)?/examples", each) for each in arguments):
        if "--window-frames" in arguments:
            return None  # four times as much work
        return [*arguments, "--num-inference-steps", "2", "--device", "cpu"]
    return None


def test_what_a_cpu_can_run_of_the_pages_runs_in_their_order(tmp_path, monkeypatch, capsys):
    """As printed, the README's first, in a folder that has the shipped models, with fewer clips and steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "my_videos").symlink_to(tmp_path / "data/puppets")
    ran = []
    for command in sorted(DOCUMENTED, key=lambda command: command.where != "README.md"):
        page = command.where == "README.md" or command.where.startswith("docs/")
        what = (command.verb, command.arguments)
        if page and what not in ran and (arguments := quick(command)) is not None:
            assert not verb_module(command.verb).main(parse(command.verb, arguments)), str(command)
            ran.append(what)
    assert {verb for verb, _ in ran} >= {"make-puppets", "check-data", "index", "train", "sample"}
    assert len(list(tmp_path.rglob("*.mp4"))) > 8

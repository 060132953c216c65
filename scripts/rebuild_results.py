"""Rebuild the marked tables of the documentation from docs/results/*.json, see `aicl.evaluation.page`.

python scripts/rebuild_results.py
"""

from pathlib import Path

from aicl.evaluation.page import rebuild
from lvdm import cli
from lvdm.files import atomic_path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("results.md", "results_tables.md", "action_library.md", "base_models.md", "baselines.md")


def main() -> None:
    """Write the pages anew."""
    for page in (DOCS / name for name in PAGES):
        text = rebuild(page.read_text(encoding="utf-8"), DOCS / "results")
        with atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{page} is made of {DOCS / 'results'}")


if __name__ == "__main__":
    cli.run(main)

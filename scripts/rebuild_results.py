"""Rebuild what the documentation shows of measured numbers: its marked tables and its charts of trainings.

python scripts/rebuild_results.py

Tables are made of docs/results/*.json, see `aicl.evaluation.page`. A chart, docs/figures/NAME.png, is drawn of NAME.csv
beside it: a column for each training, of how much its loss rises with a wrong reference.
"""

import csv
from pathlib import Path

from aicl.evaluation.page import rebuild
from lvdm import cli
from lvdm.files import atomic_path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("results.md", "results_tables.md", "action_library.md", "base_models.md", "baselines.md", "benchmarks.md")
CHARTS = ("reference_gap", "table2_gap")


def main() -> None:
    """Write the pages and the charts anew."""
    for page in (DOCS / name for name in PAGES):
        text = rebuild(page.read_text(encoding="utf-8"), DOCS / "results")
        with atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{page} is made of {DOCS / 'results'}")
    for name in CHARTS:
        numbers, picture = (DOCS / "figures" / f"{name}{ending}" for ending in (".csv", ".png"))
        draw_gaps(numbers, picture)
        print(f"{picture} is drawn of {numbers}")


def draw_gaps(numbers: Path, picture: Path) -> None:
    """Draw the reference gap, in percent of the loss, of each training in a CSV with the columns step, NAME, NAME..."""
    from lvdm.training.diagnostics import draw_histories, read_history  # imports torch

    with numbers.open(newline="", encoding="utf-8") as file:
        trainings = next(csv.reader(file))[1:]
    histories = {f"{name}: gap in percent of the loss": read_history(numbers, name) for name in trainings}
    draw_histories(picture, histories, one_scale=True)


if __name__ == "__main__":
    cli.run(main)

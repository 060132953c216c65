"""Which files of configs/ a preset is put together from, see `aicl.evaluation.presets`; quick to import."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvdm import config as configs
from lvdm.cli import check_there

TABLES = "tables"
BENCHMARKS = "benchmarks"


def preset_files(table: str, benchmark: str) -> list[Path]:
    """The files that make the preset `table`, such as "table_1", on `benchmark`, such as "ucf101", or files of one's
    own in place of either. Raises ConfigError for a benchmark or table that there is none of."""
    folder = configs.shipped_configs()
    own, rows = benchmark_file(benchmark), Path(table)
    if rows.is_file():
        return [own, rows]
    configs.check_keys([table], table_names(own.stem), f"the tables on {own.stem}")
    found = [path for path in (folder / TABLES, folder / TABLES / own.stem) if (path / f"{table}.yaml").is_file()]
    return [own, *(path / f"{table}.yaml" for path in found)]


def benchmark_file(benchmark: str) -> Path:
    """The config of a benchmark, a shipped one or a file of one's own. Raises ConfigError where there is none."""
    own = Path(benchmark)
    if own.is_file():
        return own
    configs.check_keys([benchmark], benchmark_names(), "the benchmarks")
    return configs.shipped_configs() / BENCHMARKS / f"{benchmark}.yaml"


def benchmark_names() -> list[str]:
    """The benchmarks that have a config."""
    return sorted(path.stem for path in (configs.shipped_configs() / BENCHMARKS).glob("*.yaml"))


def table_names(benchmark: str) -> list[str]:
    """The tables and experiments that can be run on a benchmark."""
    folder = configs.shipped_configs() / TABLES
    return sorted({path.stem for place in (folder, folder / benchmark) for path in place.glob("*.yaml")})


def evaluator_section(benchmark: str) -> tuple[dict[str, Any], list[str]]:
    """The sections `evaluators` and `metrics` of a benchmark's config, a shipped one or a file of one's own.

    Raises ConfigError for a benchmark that there is none of.
    """
    mapping = configs.load(benchmark_file(benchmark))
    return dict(mapping.get("evaluators") or {}), list(mapping.get("metrics") or ())


def check_names(presets: Sequence[Sequence[Path]], overrides: Iterable[str]) -> None:
    """Refuse a model or adapter of `overrides` that none of the presets, each given by its files, has or shows: it
    would change nothing. Raises ConfigError."""
    keys = [override.partition("=")[0].split(".") for override in overrides]
    given = {
        section: [key[1] for key in keys if key[0] == section and len(key) > 1] for section in ("model", "adapter")
    }
    if not any(given.values()):
        return
    plain = [configs.load(files) for files in presets]
    for section, names in given.items():
        known = set().union(*(preset.get(section) or {} for preset in plain))
        parts = [part for preset in plain for name in ("rows", "pictures") for part in preset.get(name) or ()]
        known |= {name for part in parts if isinstance(part, Mapping) and (name := part.get(section))}
        configs.check_keys(names, sorted(known), f"{section}, of which the tables' rows take theirs")


def check_data(preset: Mapping[str, Any]) -> None:
    """Say at once that the data of a preset, a mapping, is not there. Raises DataError."""
    data = preset.get("benchmark")
    if not isinstance(data, Mapping):
        return
    for name in ("path", "captions", "references", "reference_captions"):
        if isinstance(path := data.get(name), str) and path:
            check_there(path, f"say where the data lies with benchmark.{name}=...")

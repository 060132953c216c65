"""What all tests share: the order in which they start, and how many threads they compute with."""

import os

import pytest

# As many as the processes that tests start: on some CPUs several round otherwise. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Files that take longest, so that two workers end at the same time.
FIRST = (
    "test_reproduce_real.py",
    "test_training.py",
    "test_action_integration.py",
    "test_compile.py",
    "test_kills.py",
    "test_pipeline.py",
    "test_puppets_models.py",
    "test_convert.py",
    "test_benchmarks.py",
    "test_sample_script.py",
    "test_package.py",
    "test_damaged_runs.py",
    "test_eval_engine.py",
    "test_puppets_training.py",
    "test_unets.py",
    "test_kernels.py",
    "test_documented_commands.py",
    "test_machines.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of FIRST in front; the order within a file stays."""
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))

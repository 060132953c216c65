"""Sizes that a config or a file may ask for, checked before anything of that size is made."""

import dataclasses
from collections.abc import Collection
from typing import Any

from lvdm.errors import ConfigError

MAX_SIZE = 2**16  # channels, heads, positions, pixels of a side, frames
MAX_REPEATS = 2**10  # blocks in a row
MAX_ITEMS = 2**6  # of a list of sizes, one for each level

_REPEATS = {"num_res_blocks", "transformer_depth", "temporal_transformer_depth", "layers", "depth"}


def check_sizes(section: Any, where: str, free: Collection[str] = (), limit: int = MAX_SIZE) -> None:
    """Raise ConfigError for the first whole number among a dataclass's fields that is no size: below 1, or absurd.

    Lists of whole numbers are checked item by item, and for their length. Fields in `free` may have any value that
    their class allows; `limit` is the most for those that do not count blocks.
    """
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.name in free:
            continue
        items = value if isinstance(value, list | tuple) else [value]
        numbers = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
        if len(numbers) > MAX_ITEMS:
            raise ConfigError(f"{where}.{field.name} has {len(numbers)} items: at most {MAX_ITEMS} make sense")
        most = MAX_REPEATS if field.name in _REPEATS else limit
        for number in numbers:
            if not 1 <= number <= most:
                bound = "at least 1" if number < 1 else f"at most {most}"
                raise ConfigError(f"{where}.{field.name} is {number}: it must be {bound}")

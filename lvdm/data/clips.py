"""What a manifest lists: one video file, what it shows, and which class it belongs to."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClipRecord:
    """A captioned video. `key` names it independently of where the data set lies: its path inside the data set."""

    path: Path
    caption: str
    label: str | None = None
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", Path(self.path).as_posix())

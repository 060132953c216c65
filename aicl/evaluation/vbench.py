"""Generated videos in the naming that VBench's custom input reads, so that its measures can stand beside ours.

VBench takes the prompt of a video from its file's name, PROMPT-NUMBER.mp4, or from a JSON file of names and prompts
(`--prompt_file`), which is written too: it serves prompts that no file name can hold. Then

    vbench evaluate --mode=custom_input --videos_path FOLDER --prompt_file FOLDER/prompts.json --dimension NAME

measures them. Custom input has the dimensions that need no annotations, see DIMENSIONS.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lvdm.errors import DataError
from lvdm.files import atomic_path, write_json
from lvdm.video import probe, read_frames, write_video

PROMPTS_FILE = "prompts.json"
DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""What VBench measures of videos of anybody's prompts."""

_LONGEST = 200  # bytes of a prompt in a file's name; with number and ending it stays below 255


def export_vbench(videos: Sequence[tuple[Path, str]], folder: str | os.PathLike[str]) -> dict[str, str]:
    """Copy (file, prompt) pairs into an empty folder, as VBench names them; returns the prompts by file name.

    Videos that are not .mp4 are converted at their own rate. Several videos of one prompt are numbered from 0. Raises
    DataError for a folder that holds something else, for an empty prompt or a video that is not there, and VideoError
    for one that cannot be read.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: choose a new folder for the copies")
    for path, prompt in videos:
        if not path.is_file():
            raise DataError(f"{path} is not there: nothing was copied")
        if not prompt.strip():
            raise DataError(f"{path} has no prompt: VBench needs one for every video")
    names = vbench_names([prompt for _, prompt in videos])
    for (path, _), name in zip(videos, tqdm(names, desc="copying", unit="video", leave=False)):
        if path.suffix.lower() == ".mp4":
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(path, temporary)
        else:
            info = probe(path)
            write_video(folder / name, read_frames(path, range(info.num_frames)), info.fps)
    prompts = {name: prompt for name, (_, prompt) in zip(names, videos)}
    write_json(folder / PROMPTS_FILE, prompts)
    return prompts


def vbench_names(prompts: Sequence[str]) -> list[str]:
    """A file name for each prompt, PROMPT-NUMBER.mp4, numbered from 0 where a name comes up again.

    What no file name can hold is replaced by a space, and long prompts are cut at 200 bytes of UTF-8.
    """
    counts: Counter[str] = Counter()
    names = []
    for prompt in prompts:
        stem = re.sub(r'[\x00-\x1f<>:"/\\|?*\s]+', " ", prompt).strip().strip(".")
        stem = stem.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore").strip() or "video"
        names.append(f"{stem}-{counts[stem.casefold()]}.mp4")
        counts[stem.casefold()] += 1
    return names

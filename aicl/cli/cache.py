"""Encode a data set once, so that training reads latents and text features instead of videos and captions.

    aicl cache --config configs/aicl_lvdm.yaml --base checkpoints/lvdm_t2v_256 \\
        --out cache/webvid data.clip.augmentation.cached_crops=4
    torchrun --nproc-per-node 8 -m aicl cache --config ... --base ... --out ... \\
        data.clip.augmentation.cached_crops=4

Each video gets data.clip.augmentation.cached_crops fixed augmentations. Interrupt it and run it again: it goes on;
--verify first reads all that is there and makes anew what is damaged; --no-text leaves the captions out. Then
train with data.cache=OUT and the same data.clip.augmentation.cached_crops. Where references.kind is self or mixed,
references.cached_changes changed versions of each are encoded too, which takes that much longer.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from aicl.cli import Parser, data_schema, new_parser
from aicl.options import ModelOptions
from lvdm import cli
from lvdm.config import from_mapping, load
from lvdm.errors import ConfigError

SHOWN = 10
PRECISIONS = ("float32", "bfloat16", "float16")


def parser() -> Parser:
    """The options of `aicl cache`."""
    parser = new_parser("cache", __doc__)
    parser.add_overrides("changes to the config")
    parser.add_argument("--config", required=True, help="config of the training, with the sections data and run")
    parser.add_argument(
        "--base", required=True, help="model folder or run, of which the autoencoder and text encoder are used"
    )
    parser.add_argument("--out", required=True, help="cache folder, new or to be continued")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: training.precision of the config")
    parser.add_argument("--batch-size", type=int, default=4, help="clips encoded at once (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), help="reading processes (default: %(default)s)"
    )
    parser.add_argument("--no-text", action="store_true", help="do not cache text features")
    parser.add_argument("--verify", action="store_true", help="first verify what is there, and remove what is damaged")
    parser.add_argument("--device", help="default: the GPU, if there is one")
    return parser


def main(args: argparse.Namespace) -> None:
    """Encode what is not in the cache yet; processes of torchrun share the work. Raises ConfigError, DataError."""
    ModelOptions(base=args.base).check_places()
    _check_out(Path(args.out))
    import torch

    from aicl.model_files import base_folder
    from aicl.training_pairs import ReferenceSettings
    from lvdm.data import ClipCache, DataConfig, cache_settings, read_records
    from lvdm.data.caching import cache_clips, cache_texts, encoder_settings, load_encoders, remove_damaged

    rank, world_size = cli.rank_and_world_size()
    device = cli.device(args.device)
    config = load(args.config, args.overrides, data_schema())
    data = from_mapping(DataConfig, config.get("data", {}), "data")
    seed = config.get("run", {}).get("seed", 0)
    precision = args.precision or config.get("training", {}).get("precision", "float32")
    if precision not in PRECISIONS:
        raise ConfigError(f"training.precision = {precision} is unknown: choose one of {', '.join(PRECISIONS)}")
    dtype = getattr(torch, precision)
    records = read_records(data)
    encoders = load_encoders(base_folder(args.base), device)
    text = None if args.no_text else encoders.text
    changes = ReferenceSettings.read(config.get("references")).changes_to_cache
    settings = cache_settings(data.clip, seed, changes) | encoder_settings(encoders.codec, text, precision)
    cache = ClipCache.create(args.out, settings)

    if args.verify:
        removed = remove_damaged(cache, records[rank::world_size], data.clip, changes)
        print(f"{removed} damaged entries removed")
    with tqdm(unit="clip", disable=rank > 0) as bar:

        def progress(done: int, total: int, broken: int) -> None:
            bar.total = total
            bar.set_postfix(broken=broken, refresh=False)
            bar.update(done - bar.n)

        cache_clips(
            cache,
            records,
            data.clip,
            seed,
            encoders.codec,
            precision=dtype,
            batch_size=args.batch_size,
            workers=args.workers,
            part=(rank, world_size),
            progress=progress,
            changes=changes,
        )
    if text is not None and rank == 0:
        cache_texts(cache, [record.caption for record in records], text, precision=dtype)
    if rank == 0:
        _say(args.out, [(record.key, reason) for record in records if (reason := cache.why_broken(record.key, 0))])


def _say(folder: str, broken: Sequence[tuple[str, str]]) -> None:
    """The last lines: that the cache is complete, and which videos are not in it."""
    reasons = dict(broken)
    print(f"{folder} is complete" + (f"; left out: {cli.counted(len(reasons), 'broken video')}" if reasons else ""))
    for reason in list(reasons.values())[:SHOWN]:
        print(f"  {reason}")


def _check_out(folder: Path) -> None:
    """Raise ConfigError for a place that is no folder, or a folder of something else, such as the videos themselves."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and a cache is a folder: choose another --out")
    names = [path.name for path in folder.glob("[!.]*")]
    if names and not (folder / "cache.json").is_file():  # looked for last: another process may begin the cache
        raise ConfigError(f"{folder} is no latent cache and not empty ({names[0]}): choose another --out")

"""python -m tests.soak [--kills 100] [--seed 0]: kills and fills up what must survive it, and prints what was done."""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tests.soak.disks import can_mount, full_disks
from tests.soak.kills import Killer

SHARES = {"trainings": 0.6, "caches": 0.12, "checks": 0.08, "exports": 0.1, "studies": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of all kinds together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder), args.seed)
        for kind, share in SHARES.items():
            getattr(killer, kind)(max(1, round(args.kills * share)))
            print(f"{kind}: {dict(killer.figures.kills)} after {time.monotonic() - begin:.0f} s", flush=True)
        if can_mount():
            killer.figures.disks = full_disks(killer)
        else:
            print("full disks were not tried: making one takes root")
    killer.figures.seconds = round(time.monotonic() - begin, 1)
    figures = json.dumps(vars(killer.figures), indent=2)
    print(figures)
    if args.out:
        args.out.write_text(figures + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

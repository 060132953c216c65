"""Say what this machine can do with the library, and what will not work and why.

examples:
  aicl doctor
  aicl doctor --checkpoints /data/models

Ends with status 0 where the main commands work, and 1 where something stops them.
"""

import argparse
from pathlib import Path

from aicl.cli import Parser, new_parser


def parser() -> Parser:
    """The options of `aicl doctor`."""
    p = new_parser("doctor", __doc__)
    p.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="where models lie (default: %(default)s)"
    )
    return p


def main(args: argparse.Namespace) -> int:
    """Print one line for each finding, then what stops the main commands."""
    from aicl.doctor import examine

    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    problems = 0
    for finding in examine(args.checkpoints):
        print(f"{marks[finding.status]}  {finding.topic:9}  {finding.text}", flush=True)
        problems += finding.status == "problem"
    print(f"\n{problems} problem{'' if problems == 1 else 's'}" if problems else "\nNothing stops the main commands.")
    return int(problems > 0)

"""The command `aicl quickstart`, for a checkout."""

from aicl.cli import run_verb

if __name__ == "__main__":
    run_verb("quickstart")

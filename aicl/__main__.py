"""`python -m aicl VERB ...` is the command `aicl VERB ...`, also as `torchrun --nproc-per-node 4 -m aicl VERB ...`."""

from aicl.cli import main

if __name__ == "__main__":
    main()

"""What every script shares: running `main` so that a user's mistake ends in one sentence."""

import sys
from collections.abc import Callable

from lvdm.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit: 0 on success, 2 on bad input (one sentence on stderr), 130 on Ctrl-C."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

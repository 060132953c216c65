"""A regular package, so that another `tests` on the import path does not shadow it."""

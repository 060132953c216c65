"""Errors that a user can act on. Scripts print them as one sentence, without a stack trace."""


class UserError(ValueError):
    """Bad input: the message says in one sentence what is wrong, where, and what to do."""

    def __init__(self, message: str = "") -> None:
        """A loader of PyTorch hands on an error of one of its processes as one of the same class, whose message is the
        whole traceback: what the error itself said stands at its end."""
        if message.startswith("Caught ") and " in DataLoader worker process " in message.partition("\n")[0]:
            message = message.rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")[2].strip()
        super().__init__(message)

    def __str__(self) -> str:
        """The message, in which what a terminal cannot show (half a character, NUL) is written out."""
        return super().__str__().replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


class ConfigError(UserError):
    """A configuration key, value or combination that cannot work."""


class VideoError(UserError):
    """A video or image file that is missing, broken or too short."""


class CheckpointError(UserError):
    """A weights file that is missing, broken, or of another model family or layout."""


class DataError(UserError):
    """A dataset whose index, captions or files do not fit together."""


class DiskError(UserError):
    """A file that cannot be written: a full or read-only disk, a folder that is no place for it."""


class SamplingError(UserError):
    """Numbers that are no longer finite while a video is made."""

"""Disks that take no more, without being root: no file may grow past a size, or nothing can be made at all."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Inside, the system refuses to write past `most` bytes of a file, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only_disk() -> Iterator[None]:
    """Inside, making a file or folder and opening one to write fail as on a disk that is mounted read-only."""
    opened = os.open

    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def look(path, flags, *args, **kwargs):
        return refuse(path) if flags & (os.O_WRONLY | os.O_RDWR) else opened(path, flags, *args, **kwargs)

    with mock.patch("os.mkdir", refuse), mock.patch("os.open", look):
        yield

"""Writing files so that nobody ever sees half of one, and folders that one process has at a time."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lvdm.errors import DiskError, UserError

LOCK_FILE = ".lock"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def atomic_path(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on an error it is removed.

    The temporary name keeps the ending of `path`, since video writers choose their format by it. `durable`: what is
    written is on the disk before it replaces `path`, so that a power cut leaves the old or the new file; without it,
    for files that carry checksums, it may leave a damaged one. Raises DiskError where no file can be made there, or the
    disk is full or cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    mode = temporary.stat().st_mode & 0o777
    try:
        with disk_errors(path):
            yield temporary
            temporary.chmod(mode)  # safetensors puts a private file in its place
            if durable:
                sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise DiskError unless a file can be made at `path`: ask before the work whose result it is to hold."""
    _temporary(Path(path)).unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")


def json_text(value: Any, **options: Any) -> str:
    """`value` as JSON that can be written as UTF-8, with letters as they are.

    Names of files that are no UTF-8 have halves of characters in them; then all letters beyond ASCII are escaped.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    halves = any("\ud800" <= letter <= "\udfff" for letter in text)
    return json.dumps(value, **options) if halves else text


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder and those above it, where they are missing. Raises DiskError where that cannot be done."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
        reason = getattr(error, "strerror", None) or error
        raise DiskError(f"{folder}: cannot be made ({reason}); choose another place") from error
    return Path(folder)


@contextmanager
def disk_errors(place: str | os.PathLike[str], then: str = "then do it again") -> Iterator[None]:
    """Raise DiskError, one sentence about `place`, where what is done inside cannot write to the disk.

    `then` says what to do once there is room. What else goes wrong passes through.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number = disk_errno(error)
        if number is None:
            raise
        what = "make room" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "see to the disk"
        raise DiskError(f"{place}: cannot be written ({os.strerror(number)}); {what}, {then}") from error


def disk_errno(error: BaseException) -> int | None:
    """The number of the system's error if an exception, of any library, says that the disk takes no more; else None."""
    if isinstance(error, UserError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if isinstance(error, RuntimeError) and "inline_container" in str(error) and "Reader" not in str(error):
        number = errno.ENOSPC  # PyTorch's writer keeps the number to itself
    return number if number in _DISK_ERRORS else None


@contextmanager
def temporary_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder that becomes `folder`, which must be missing or empty, on success; removed on an error.

    What processes that were killed left of theirs is removed, too. Raises DiskError where it cannot be written.
    """
    folder = Path(folder)
    make_folder(folder.parent)
    prefix = f".{folder.name}.writing-"
    for left in folder.parent.glob(prefix.replace("[", "[[]") + "*"):
        if left.is_dir() and (handle := _hold(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    temporary = folder.parent / f"{prefix}{secrets.token_hex(4)}"
    try:
        temporary.mkdir()
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror}); choose another place") from error
    handle = _hold(temporary)
    try:
        with disk_errors(folder):
            yield temporary
            sync_folder(temporary)
            os.replace(temporary, folder)
    except DiskError as error:  # of a file in it: nobody knows the temporary name
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(str(error).replace(str(temporary), str(folder))) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def locked(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Have a folder for this process alone; the system frees it when the process ends, however it ends.

    `what` says in the message what another process is doing there. The folder is made, and removed again where nothing
    was written to it. On a file system without locks a warning says so. Raises UserError while another process has it,
    DiskError where it cannot be written.
    """
    made = not os.path.exists(folder)
    path = make_folder(folder) / LOCK_FILE
    try:
        handle = _open_locked(path, what)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror}); choose another place") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that went away: the lock goes with the process
            path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile looks again
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()


def sync(path: Path) -> None:
    """Have the disk hold a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk hold every file in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)


def _open_locked(path: Path, what: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Of the process, not of the open file: the loaders' processes must not keep it when this one was killed.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                remark = "this file system has no locks: see to it yourself that no other process"
                warnings.warn(f"{path.parent}: {remark} {what} there", stacklevel=3)
                return handle
            owner = os.read(handle, 200).decode("utf-8", "replace").strip()
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            owner = owner or "another process"
            raise UserError(
                f"{path.parent}: {owner} {what} there already; wait for it, stop it, or choose another folder"
            ) from error
        try:
            ours = os.path.samestat(os.fstat(handle), path.stat())
        except FileNotFoundError:  # the one before us has just finished
            ours = False
        if ours:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} of {socket.gethostname()}".encode())
            return handle
        os.close(handle)


def _hold(folder: Path) -> int | None:
    """A handle that keeps others from removing a folder while this process lives; None if another has one."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another process has just removed it
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _temporary(path: Path) -> Path:
    """A new, empty file beside `path`, whose folder is made. Raises DiskError where that cannot be done.

    Others may read it if the umask lets them: those of `tempfile` are private, and to make them public one has to ask
    for the umask, which sets it, for all threads.
    """
    temporary = path.parent / f".{path.stem}.{secrets.token_hex(4)}{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
        reason = getattr(error, "strerror", None) or error
        raise DiskError(f"{path}: cannot be written ({reason}); choose another place") from error
    return temporary

"""Exceptions, by kind. Messages name the file, the tensor and the reason."""

from __future__ import annotations

import errno
import re


class Error(Exception):
    """Any error of the library; `code` is its number in the C API (AQ_ERROR_...)."""

    code: int = 0

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(Error, ValueError):
    """A setting is unknown or out of range."""

    code = 1


class UnknownKey(ConfigError, KeyError):
    """Raised by `config[key]` for an unknown key."""


class IOFailure(Error, OSError):
    """The operating system refused to open, read or write a file; `errno` is its number."""

    code = 2


class MissingFile(IOFailure, FileNotFoundError):
    """A file to read does not exist."""


class FileError(Error, ValueError):
    """A file is damaged, incomplete or of another kind."""

    code = 3


class TensorError(Error, ValueError):
    """A tensor is not what it should be, cannot be treated as asked, or does not exist."""

    code = 4


class UnknownTensor(TensorError, KeyError):
    """Raised by `model[name]` for a name that no tensor has."""


class PlanError(Error, ValueError):
    """A plan does not match its source, or cannot be read."""

    code = 5


class ChecksumError(Error):
    """A checksum does not match: the data is damaged."""

    code = 6


class Cancelled(Error):
    """A callback returned False."""

    code = 7


class InternalError(Error, RuntimeError):
    """A bug in the library."""

    code = 8


class ArgumentError(Error, ValueError):
    """An argument is invalid: a wrong length, a closed object, text that is not UTF-8."""

    code = 9


_KINDS: dict[int, type[Error]] = {
    kind.code: kind
    for kind in (
        ConfigError,
        IOFailure,
        FileError,
        TensorError,
        PlanError,
        ChecksumError,
        Cancelled,
        InternalError,
        ArgumentError,
    )
}


def of_status(code: int, message: str) -> Error:
    """The exception for a status of the C API."""
    kind = _KINDS.get(code)
    if kind is None:
        # From a newer library.
        error = Error(message)
        error.code = code
        return error
    if kind is not IOFailure:
        return kind(message)
    # The C API passes the system's number on in the text only.
    found = re.search(r"\(os error (\d+)\)", message)
    number = int(found.group(1)) if found else None
    failure = (MissingFile if number == errno.ENOENT else IOFailure)(message)
    failure.errno = number
    return failure

"""Every error a user can meet. One base class; a message says what, expected, got, and what to do next."""

from __future__ import annotations


class DigsegError(Exception):
    """Base of all errors raised on purpose by this project. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(DigsegError):
    """The caller asked for something that does not exist or does not fit: a flag, a backend, a precision."""

    exit_code = 2


class InputError(DigsegError):
    """A picture, prompt or folder given by the user cannot be used."""

    exit_code = 2


class OutputError(DigsegError):
    """A result cannot be written: disk full, no permission, name too long, something else in its place."""


class MissingPackageError(DigsegError):
    """An optional part of the installation is needed and not there."""


class BundleError(DigsegError):
    """A bundle is incomplete, damaged, or of another format version."""


class CheckpointError(DigsegError):
    """A checkpoint directory lacks a file or holds weights that do not fit its configuration."""


class BackendError(DigsegError):
    """A backend asked for by name cannot run here, or broke while running."""


class VerificationError(DigsegError):
    """An exported model does not reproduce the reference within its limits."""


class TrainingError(DigsegError):
    """Training cannot go on: no data, a resume that does not match, a loss that is not finite."""

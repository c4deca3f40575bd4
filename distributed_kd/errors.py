"""The two ways a command can fail, and how each leaves the shell.

Every message is one readable line: what went wrong, where, and what to do about it.
"""


class DkdError(Exception):
    """Base of all errors a user is shown as one line. `exit_code` is the process's exit status."""

    exit_code = 1


class RequestError(DkdError):
    """The request was wrong (recipe, input, artifact that does not fit); nothing was written over."""

    exit_code = 2


class WorkError(DkdError):
    """The request was right and the work failed; what was written stays good."""

    exit_code = 1


class StoreError(WorkError):
    """A store did not answer well, however often it was asked: no fault of what was to be read or written."""


class FullDisk(StoreError):
    """A disk has no room: whatever else is to be written there fails as well."""


class StoreRefused(StoreError):
    """A store refuses what asking again does not change: credentials, rights, or a bucket that is not there."""

    exit_code = RequestError.exit_code


class Stopped(DkdError):
    """The work was asked to stop, and stopped well; the same command goes on."""

    exit_code = 0

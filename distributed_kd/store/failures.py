"""What a store's driver raises, as one line: what could not be done where, why, and what to do.

Drivers raise errors of many kinds, some with the URL of the request in them; nothing that opens a store may be shown.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_kd.errors import DkdError, FullDisk, StoreError, StoreRefused

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP}
_NO_CREDENTIALS = {  # of botocore and google.auth, which are there only with their drivers
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "ParamValidationError", "GoogleAuthError",
}  # fmt: skip
_DRIVERS = {"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"}
_OPENS = re.compile(  # a password may hold a slash; a port is none
    r"(?<=://)[^/@\s]*:(?!\d+(?:[/?#\s\"']|$))[^@\s]*@"
    r"|(?:(?<=X-Amz-Signature=)|(?<=X-Amz-Security-Token=)|(?<=X-Goog-Signature=))[^&\s]+"
)
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextmanager
def readable(where: str, what: str) -> Iterator[None]:
    """A driver's errors as `StoreError`. what: "read" or "written".

    A file that is not there to be read is the caller's to judge: that error stays as it is.
    """
    try:
        yield
    except DkdError:
        raise
    except Exception as error:
        is_own = isinstance(error, OSError) or type(error).__module__.split(".")[0] in _DRIVERS
        if not is_own or (what == "read" and isinstance(error, _NOT_THERE)):
            raise
        told = "".join(traceback.format_exception(error))
        raise _failure(where, what, error) from (error if without_secrets(told) == told else None)


def _failure(where: str, what: str, error: Exception) -> StoreError:
    number = getattr(error, "errno", None)
    begin = f"{where} cannot be {what}"
    if number in _FULL:
        return FullDisk(
            f"{begin}: the disk is full ({reason_of(error)}); what was written so far is good: free some space and "
            "run the same command"
        )
    if _is_refused(error):
        return StoreRefused(
            f"{begin}: {reason_of(error)}; check that it is there, and that this environment's credentials allow it"
        )
    return StoreError(
        f"{begin}, whatever was tried: {reason_of(error)}; what was written so far is good: when the store answers "
        "again, run the same command"
    )


def _is_refused(error: Exception) -> bool:
    """Whether asking again would not change it."""
    return (
        isinstance(error, (PermissionError, *_NOT_THERE))
        or getattr(error, "errno", None) in _REFUSED
        or any(kind.__name__ in _NO_CREDENTIALS for kind in type(error).__mro__)
        or getattr(error, "code", None) in (401, 403)  # of gcsfs, which has no more than words for the second
        or str(error).startswith("Forbidden: ")
    )


def reason_of(error: BaseException) -> str:
    """An error's own words as one line, without what opens a store."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text)[:300]


def without_secrets(text: str) -> str:
    """The text, with passwords in URLs and the signatures of signed ones replaced by `***`."""
    return _OPENS.sub(lambda found: "***@" if found.group().endswith("@") else "***", text)

"""What a store's driver raises, as one line: what could not be done where, why, and what to do.

Drivers raise errors of many kinds, some with the URL of the request in them; nothing that opens a store may be shown.
"""

from __future__ import annotations

import errno
import re
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
_OPENS = re.compile(r"(?<=://)[^/\s]*:[^\s]*@|((?:X-Amz|X-Goog)-(?:Signature|Credential|Security-Token)=)[^&\s]*", re.I)
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
        raise _failure(where, what, error) from error


def _failure(where: str, what: str, error: Exception) -> StoreError:
    number = getattr(error, "errno", None)
    begin = f"{where} cannot be {what}"
    if number in _FULL:
        return FullDisk(
            f"{begin}: the disk is full ({reason_of(error)}); what was written so far is good: free some space and "
            "run the same command"
        )
    is_unknown = any(kind.__name__ in _NO_CREDENTIALS for kind in type(error).__mro__)
    if is_unknown or number in _REFUSED or isinstance(error, (PermissionError, *_NOT_THERE)):
        return StoreRefused(
            f"{begin}: {reason_of(error)}; check that it is there, and that the credentials in this environment may"
        )
    return StoreError(
        f"{begin}, tried again and again: {reason_of(error)}; what was written so far is good: when the store answers "
        "again, run the same command"
    )


def reason_of(error: BaseException) -> str:
    """An error's own words as one line, without what opens a store."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text)[:300]


def without_secrets(text: str) -> str:
    """The text, with user names and passwords in URLs and signatures of signed ones replaced by `***`."""
    return _OPENS.sub(lambda found: f"{found.group(1)}***" if found.group(1) else "***@", text)


def opens(uri: str) -> bool:
    """Whether a URL holds what opens the store: a password, or a signature."""
    return _PASSWORD.search(uri) is not None or without_secrets(uri) != uri


_PASSWORD = re.compile(r"://[^/@]*:(?!\d+(?:/|$))[^@]*@")  # a key may hold a slash; a port is none

"""How often a request to an object store is made again.

The drivers do that themselves, with growing and random pauses. Of s3fs, measured with faults in mid-request: botocore
makes a request again after 500, 502, 503, 504, a timeout, and a connection that is refused or cut; s3fs does so five
times over again after "slow down", a timeout or a cut connection, and asks again for an answer that ends in the middle.
gcsfs has six attempts for all of these. What botocore's defaults lack is patience: five attempts, some 10 s, for a 500
or for a server that restarts. A user's own settings win: AWS_MAX_ATTEMPTS, AWS_RETRY_MODE, ~/.aws/config, fsspec's.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import fsspec
from fsspec.config import apply_config

ATTEMPTS = 10  # pauses of up to 1, 2, 4, 8, 16, 20, 20, ... s, half of it on average: about a minute


def options(uri: str) -> dict[str, Any]:
    """What the filesystem of a URL is opened with, beside what the user has set. Raises what botocore and s3fs do."""
    if uri.startswith(("gs://", "gcs://")):
        log = logging.getLogger("gcsfs")
        if not log.handlers:  # else the traceback of what is raised as well goes to standard error
            log.addHandler(logging.NullHandler())
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    kind = fsspec.get_filesystem_class("s3")
    from botocore.session import Session

    set_by_user = {key.removeprefix("AWS_").lower() for key in os.environ} | Session().get_scoped_config().keys()
    retries: dict[str, Any] = {}
    if "retry_mode" not in set_by_user:
        retries["mode"] = "standard"
    if "max_attempts" not in set_by_user:
        retries["total_max_attempts"] = ATTEMPTS
    return {"config_kwargs": {"retries": retries, **apply_config(kind, {}).get("config_kwargs", {})}}

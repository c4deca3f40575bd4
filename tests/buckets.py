"""Servers of object stores on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest


def forget_clients() -> None:
    """fsspec keeps a client for the life of a process, with the endpoint that the environment had when it was made."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """The environment that leads to a bucket named `bucket`: moto's server."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [Path(sys.executable).parent / "moto_server", "-p", endpoint.rsplit(":", 1)[1]],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=1)
            break
        except OSError:
            assert time.monotonic() < deadline, "moto's server did not come up"
            time.sleep(0.2)
    environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
    forget_clients()
    yield environment
    forget_clients()
    server.terminate()
    server.wait()

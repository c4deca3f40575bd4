"""What is told of a driver's error, and how drivers are set to ask again: without a server."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import fsspec
import pytest

from distributed_kd.errors import RequestError, StoreError, StoreRefused, WorkError
from distributed_kd.store import retries
from distributed_kd.store.failures import readable, without_secrets
from distributed_kd.store.filesystem import Store

OPENING = [
    "s3://AKIA:abc@bucket/x",
    "s3://AKIA:ab/c+d@bucket/x",
    "simplecache::s3://AKIA:abc@bucket/x",
    "s3://AKIA:9000@bucket/abc",
    "https://host/a?X-Amz-Algorithm=A&X-Amz-Signature=abc",
    "https://host/a?X-Goog-Signature=abc&x=1",
]


@pytest.mark.parametrize("uri", OPENING)
def test_a_url_that_opens_a_store_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(RequestError, match="a password or a signature in a URL would be written down") as caught:
        Store(uri)
    assert uri not in str(caught.value) and not re.search("AKIA|ab/c|=abc", str(caught.value))


@pytest.mark.parametrize("uri", ["memory://a@b/c:d", "memory://host:80/a@b", "memory://x/a:b@c"])
def test_a_url_with_a_port_or_an_at_sign_is_none(uri: str) -> None:
    assert without_secrets(uri) == uri
    assert Store(uri).uri == uri


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (TimeoutError("gone"), StoreError, 1),
        (OSError(5, "Input/output error"), StoreError, 1),
        (PermissionError("not yours"), StoreRefused, 2),
        (FileNotFoundError("no bucket"), StoreRefused, 2),
    ],
)
def test_an_error_of_the_stores_is_work_that_failed_or_a_request_that_was_wrong(
    error: Exception, kind: type[StoreError], code: int
) -> None:
    with pytest.raises(WorkError, match="a/b cannot be written") as caught, readable("a/b", "written"):
        raise error
    assert type(caught.value) is kind and caught.value.exit_code == code
    assert caught.value.__cause__ is error


def test_an_error_of_ours_is_not_the_stores() -> None:
    with pytest.raises(ZeroDivisionError), readable("a/b", "written"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), readable("a/b", "read"):
        raise FileNotFoundError


@pytest.mark.parametrize("text", ["http://user:{}@host:9000/b", "http://host/b?X-Amz-Security-Token={}&X-Amz-Date=1"])
def test_an_error_that_shows_what_opens_a_store_is_told_without_and_its_traceback_not_at_all(text: str) -> None:
    error = TimeoutError("no answer")
    error.__cause__ = OSError(text.format("abc"))
    with pytest.raises(StoreError) as caught, readable("a/b", "written"):
        raise error
    assert "no answer" in str(caught.value)
    assert "abc" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(StoreError, match=r"\*\*\*") as caught, readable("a/b", "written"):
        raise OSError(text.format("abc"))
    assert "abc" not in str(caught.value)


def test_a_users_own_settings_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")

    def found() -> dict[str, Any]:
        return retries.options("s3://bucket")["config_kwargs"]

    for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delitem(fsspec.config.conf, "s3", raising=False)
    assert found() == {"retries": {"mode": "standard", "total_max_attempts": retries.ATTEMPTS}}
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    assert found() == {"retries": {"mode": "standard"}}
    (tmp_path / "config").write_text("[default]\nretry_mode = adaptive\n")
    assert found() == {"retries": {}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"mode": "legacy"}, "read_timeout": 1}})
    assert found() == {"retries": {"mode": "legacy"}, "read_timeout": 1}
    assert retries.options("memory://x") == {} == retries.options(str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreRefused, match=r"s3://bucket cannot be read: .*profile \(nobody\) could not be found"):
        Store("s3://bucket")

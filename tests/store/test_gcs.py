"""A bucket of Google's by the same path: an emulator of its JSON API on loopback, the ordinary client.

Neither is among the packages that the tests ask for: `pip install gcsfs gcp-storage-emulator`, where this is to run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from distributed_kd.errors import StoreRefused
from distributed_kd.store.filesystem import Store
from distributed_kd.store.lease import lease
from tests.commands import ROOT
from tests.store.faulty import Fault, FaultyProxy

pytestmark = pytest.mark.slow
DATA = bytes(range(256)) * 4000


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """In front of the emulator, which holds a bucket named `bucket`; this process's environment leads to it."""
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    made = FaultyProxy(server._api._httpd.server_address[1])
    made.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.endpoint)
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield made
    gcsfs.GCSFileSystem.clear_instance_cache()
    made.stop()
    server.stop()


def test_a_store_in_it_is_as_any_other(proxy: FaultyProxy) -> None:
    store = Store("gs://bucket/job")
    assert not store.exists("a/b") and store.list("a") == []
    with pytest.raises(FileNotFoundError):
        store.read("a/b", at_most=9)
    store.check_writable()
    for data in (b"former", DATA):
        store.put("a/b", data)
        assert store.read("a/b") == data and store.read("a/b", at_most=5) == data[:5]
    store.put("a/empty", b"")
    assert store.read("a/empty") == b"" == store.read("a/empty", at_most=9)
    assert store.list("a") == ["b", "empty"] and store.child("a").exists("b")
    with lease(store, "dkd cache"):
        assert store.list("") == ["lease.json"]
    store.delete("a")
    assert store.list("a") == [] == store.list("")


def test_what_fails_is_asked_again_and_told_in_one_line(proxy: FaultyProxy) -> None:
    store = Store("gs://bucket/job")
    for kind in ("503", "500", "cut put", "lost answer"):
        proxy.faults = [Fault(kind, "POST", times=2)]
        store.put(kind, DATA)
        assert proxy.done.pop(kind) == 2
        assert store.read(kind) == DATA
    proxy.faults = [Fault("cut get", "GET", "alt=media", times=2)]
    assert store.read("503") == DATA
    proxy.faults = [Fault("403", "POST")]
    with pytest.raises(StoreRefused, match="gs://bucket/job/file cannot be written: Forbidden: "):
        store.put("file", DATA)
    with pytest.raises(StoreRefused, match="gs://no-such-bucket/file cannot be written: "):
        Store("gs://no-such-bucket").put("file", DATA)
    proxy.is_down = True
    # In a process of its own: pytest would take what the driver logs.
    code = "from distributed_kd.store.filesystem import Store; Store('gs://bucket/job').put('file', b'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1].startswith(
        "distributed_kd.errors.StoreError: gs://bucket/job/file cannot be written, whatever was tried: "
    )
    assert "out of retries" not in done.stderr, "the driver's own log"

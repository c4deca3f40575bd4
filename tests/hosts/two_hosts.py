"""Two hosts on one machine: network namespaces with an address each, a link between them that can be cut, Ray on both.

The file system is the machine's, as a shared one would be. All that runs in a namespace ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.commands import ROOT

BIN = Path(sys.executable).parent
# `ray start` looks through all processes of the machine for a head of the same address: another run has another one.
_NETWORK = f"10.213.{os.getpid() % 250}"
HEAD, PORT = f"{_NETWORK}.1", 6379
ADDRESS = f"{HEAD}:{PORT}"
# A host that does not answer is dead after 7 checks of 1 + 5 seconds: later than the 30 seconds that a link may be cut
# for, sooner than Ray's own minute and more. Not after one check: a connection that breaks is a failed check as well.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "7",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "40",
}
# How many nodes ran a task, each with an environment of its own as replicas have.
_PROBE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
task = ray.remote(lambda: ray.get_runtime_context().get_node_id())
own = task.options(num_cpus=1, scheduling_strategy="SPREAD", runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": ""}})
print(len(set(ray.get([own.remote() for _ in range(8)], timeout=60))))
"""


def why_not() -> str | None:
    """Why this machine has no two hosts; None where it does."""
    if shutil.which("ip") is None:
        return "no `ip` command (iproute2)"
    name = f"dkd-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass
class Host:
    """A network namespace."""

    name: str
    address: str
    folder: Path  # Ray's, short: its sockets' paths may have 107 characters

    def start(
        self, arguments: Sequence[str | Path], variables: Mapping[str, str] | None = None, **options: object
    ) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "DKD_QUIET")}
        environment |= HEALTH | {
            "RAY_AUTH_MODE": "disabled", "RAY_DISABLE_IMPORT_WARNING": "1", "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1", "PATH": f"{BIN}:{os.environ['PATH']}",
        }  # fmt: skip
        environment |= variables or {}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *map(str, arguments)],
            env=environment, text=True, start_new_session=True, **options,
        )  # type: ignore[call-overload,no-any-return]  # fmt: skip

    def processes(self, beginning: str = "") -> list[psutil.Process]:
        """What runs here, of those whose command line begins so."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        found = []
        for number in listed.stdout.split():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(number))
                if " ".join(process.cmdline()).startswith(beginning):
                    found.append(process)
        return found

    def replicas(self) -> list[psutil.Process]:
        return self.processes("ray::Replica")

    def end_all(self) -> None:
        while left := self.processes():
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)


class TwoHosts:
    """Host `a`, with the head and a driver, and host `b`, with nodes."""

    def __init__(self, folder: Path) -> None:
        tag = f"dkd{os.getpid() % 10_000}"
        self.a = Host(f"{tag}a", HEAD, folder / "a")
        self.b = Host(f"{tag}b", f"{_NETWORK}.2", folder / "b")
        self.hosts = (self.a, self.b)
        for host in self.hosts:
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        _ip("link", "add", "eth", "netns", self.a.name, "type", "veth", "peer", "name", "eth", "netns", self.b.name)
        for host in self.hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth")
        self.restore()

    def cut(self) -> None:
        """No packet passes; neither side is told that a connection has ended."""
        _ip("-n", self.b.name, "link", "set", "eth", "down")

    def restore(self) -> None:
        for host in self.hosts:
            _ip("-n", host.name, "link", "set", "eth", "up")

    def start_head(self, processors: int = 1) -> None:
        arguments = ["--head", "--port", str(PORT), "--include-dashboard=false", "--num-cpus", str(processors)]
        self._start(self.a, arguments)

    def start_node(self, host: Host | None = None, processors: int = 1) -> None:
        self._start(host or self.b, ["--address", ADDRESS, "--num-cpus", str(processors)])

    def _start(self, host: Host, arguments: list[str]) -> None:
        started = host.start(
            [
                BIN / "ray", "start", "--node-ip-address", host.address, "--temp-dir", host.folder,
                "--object-store-memory", "100000000", "--disable-usage-stats", *arguments,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = started.communicate(timeout=120)[0]
        assert started.returncode == 0, said

    def restart(self) -> None:
        """Ends what is left on both hosts, and starts them anew, until both run a task: on a busy machine a node now
        and then gives up before its agent is there, which is Ray's own affair."""
        for _ in range(3):
            for host in self.hosts:
                host.end_all()
            self.start_head()
            self.start_node()
            probe = self.a.start(
                [sys.executable, "-c", _PROBE, ADDRESS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            with suppress(subprocess.TimeoutExpired):
                if probe.communicate(timeout=90)[0].split()[-1:] == ["2"]:
                    return
        raise AssertionError("Ray did not come up on two hosts in three attempts")

    def raylets(self, host: Host) -> list[psutil.Process]:
        return [process for process in host.processes() if process.name() == "raylet"]

    def gcs(self) -> psutil.Process:
        return next(process for process in self.a.processes() if process.name() == "gcs_server")

    def start_driver(self, recipe: Path) -> subprocess.Popen[str]:
        return self.a.start(
            [sys.executable, "-m", "distributed_kd.cli", "cache", recipe],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def replicas(self) -> list[psutil.Process]:
        return [*self.a.replicas(), *self.b.replicas()]

    def close(self) -> None:
        for host in self.hosts:
            host.end_all()
            _ip("netns", "del", host.name)


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    folder = Path(tempfile.mkdtemp(prefix="dkd", dir="/tmp"))
    made = TwoHosts(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

"""sshd on both hosts, and an `ssh` that finds it: keys and settings of their own, none of the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.disturbed import until
from tests.hosts.two_hosts import TwoHosts

SSHD = "/usr/sbin/sshd"
_PORT = 2222
_SERVER = """
Port {port}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
"""
_CLIENT = """
Host *
  Port {port}
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def why_not() -> str | None:
    missing = [name for name in (SSHD, "ssh-keygen", "pdsh") if shutil.which(name) is None]
    return f"no {', '.join(missing)} (openssh-server, pdsh)" if missing else None


def start_sshd(hosts: TwoHosts, folder: Path) -> dict[str, str]:
    """Variables with which `ssh` and `pdsh` reach both hosts without a password."""
    Path("/run/sshd").mkdir(exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    (folder / "server").write_text(_SERVER.format(port=_PORT, folder=folder))
    (folder / "client").write_text(_CLIENT.format(port=_PORT, folder=folder))
    (folder / "bin").mkdir()
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/client "$@"\n')
    ssh.chmod(0o755)
    variables = {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    for host in hosts.hosts:
        host.start([SSHD, "-D", "-f", folder / "server"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(
            lambda host=host: hosts.a.start(["ssh", host.address, "true"], variables).wait(30) == 0,
            "sshd", 30.0,
        )  # fmt: skip
    return variables

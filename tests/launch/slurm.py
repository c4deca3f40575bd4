"""A Slurm of one node or two on this machine: munge, controller and nodes with files, ports and keys of their own.

A second node is this host under its other name, `localhost`, on a port of its own: what runs there reaches the first by
the name that Slurm gives it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.buckets import free_port
from tests.disturbed import until

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
_SETTINGS = """
ClusterName=dkd
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def why_not() -> str | None:
    missing = [name for name in _PROGRAMS if _program(name) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian's slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "a Slurm of its own needs root"


@contextmanager
def slurm(folder: Path, nodes: int = 1) -> Iterator[dict[str, str]]:
    """The variables with which `srun` finds it. What was started ends with it."""
    settings, host = folder / "slurm.conf", socket.gethostname()
    names = [host, "localhost"][:nodes]
    settings.write_text(
        _SETTINGS.format(
            host=host, folder=folder, controller=free_port(), names=",".join(names),
            nodes="\n".join(
                f"NodeName={name} NodeHostname={host} Port={free_port()} CPUs=2 State=UNKNOWN" for name in names
            ),
        )
    )  # fmt: skip
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    folder.chmod(0o755)
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/key"]
    munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
    variables = {"SLURM_CONF": str(settings)}
    started = []
    try:
        with (folder / "log").open("w") as log:
            daemons = [["slurmd", "-D", "-N", name, "-f", settings] for name in names]
            for command in (munge, ["slurmctld", "-D", "-i", "-f", settings], *daemons):
                program = _program(str(command[0]))
                assert program is not None
                started.append(
                    subprocess.Popen([program, *command[1:]], env=os.environ | variables, stdout=log, stderr=log)
                )
                until((folder / "munge.socket").exists, "munge", 30.0)

        def is_idle() -> bool:
            asked = subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=os.environ | variables, capture_output=True, text=True
            )
            return len(set(asked.stdout.split()) - {"idle", "mixed"}) == 0 and asked.stdout.strip() != ""

        until(is_idle, f"Slurm ({folder}/log)", 60.0)
        yield variables
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")

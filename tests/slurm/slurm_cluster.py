"""A Slurm cluster of one machine: a controller and nodes that are all this host, as root, without systemd or database.

Everything lies in one folder, with ports and a munge key of its own, so that it disturbs no Slurm of the machine.
The settings that a real cluster would not have are there for speed: a requeued job waits for the credential to expire
(`cred_expire`, 121 s by default), a silent node is given up after `SlurmdTimeout`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import Guard

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
NODES = ("n1", "n2")
CPUS = 2
CONFIG = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock,cred_expire=6
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MaxArraySize={max_array}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=2000\n"


def why_not() -> str:
    """Why no cluster can be started here; empty when one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_search_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): `make slurm-packages` installs it where apt can"
    return "" if os.geteuid() == 0 else "slurmd needs root"


def _search_path() -> str:
    # Daemons lie where a person's PATH may not look.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass
class Cluster:
    """`with Cluster(folder) as cluster:` starts it; `cluster.environment` is what clients need."""

    home: Path
    grace: int = 6
    warns: bool = True  # whether preemption sends the signal that a job asked for
    max_array: int = 1001
    ports: list[int] = field(default_factory=lambda: free_ports(1 + len(NODES)))

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.home / "slurm.conf"), "PATH": _search_path()}

    def __enter__(self) -> "Cluster":
        self.home.mkdir(parents=True, exist_ok=True)
        # Before the first daemon: a test run that is killed runs none of its own clean-up.
        self._guard = Guard(f"SLURM_CONF={self.home / 'slurm.conf'}")
        try:
            self._write_config()
            self._start_munge()
            self._run("slurmctld", "-c")
            for name in NODES:
                self.start_node(name)
            self._wait_for_nodes()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _write_config(self) -> None:
        host = socket.gethostname().partition(".")[0]
        text = CONFIG.format(
            host=host, home=self.home, controller_port=self.ports[0], grace=self.grace, max_array=self.max_array
        )
        text += "SlurmctldParameters=preempt_send_user_signal\n" if self.warns else ""
        nodes = zip(NODES, self.ports[1:], strict=True)
        text += "".join(NODE.format(name=name, host=host, port=port, cpus=CPUS) for name, port in nodes)
        # slurm.conf reads partitions after the nodes they name.
        lines = sorted(text.splitlines(), key=lambda line: line.startswith("PartitionName"))
        (self.home / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.home / "state").mkdir(exist_ok=True)

    def _start_munge(self) -> None:
        key = self.home / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        names = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log",
                 "seed-file": "munge.seed"}  # fmt: skip
        # Forced: munged would refuse a folder below a world-writable one, such as /tmp.
        self._run("munged", "--force", *(f"--{option}={self.home / name}" for option, name in names.items()))

    def start_node(self, name: str) -> None:
        (self.home / f"spool.{name}").mkdir(exist_ok=True)
        self._run("slurmd", "-N", name)

    def _wait_for_nodes(self) -> None:
        limit = time.monotonic() + 30
        while self.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split() != list(NODES):
            if time.monotonic() > limit:
                raise RuntimeError("Slurm did not come up:\n" + self.logs())
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of all daemons, for a test that fails."""
        tails = [(path.name, path.read_text(errors="replace").splitlines()[-15:]) for path in self.home.glob("*.log")]
        return "\n".join("\n  ".join([name, *lines]) for name, lines in tails)

    def _run(self, *command: str) -> None:
        # Daemons keep what they are given open, so their output must not be a pipe that somebody reads to its end.
        with (self.home / "start.log").open("ab") as log:
            subprocess.run(command, env={**os.environ, **self.environment}, check=True, timeout=30,
                           stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip

    def ask(self, *command: str, seconds: float = 30) -> str:
        """What a client program prints, within so many seconds."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=seconds
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def kill_node(self, name: str) -> None:
        """As when a node loses its power: its daemon and everything on it end at once, and nobody reports anything."""
        self._kill_daemon(f"slurmd.{name}.pid")
        # Until nothing is left: a process may be started while we look.
        while doomed := self._processes_of(name):
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _processes_of(self, name: str) -> list[int]:
        """The step daemons of a node (forked by its slurmd) and the processes of its jobs."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self._is_of(entry, name):
                    found.append(int(entry.name))
        return found

    def _is_of(self, process: Path, name: str) -> bool:
        if int(process.name) == os.getpid() or not self._is_ours(process):
            return False
        is_job = f"SLURMD_NODENAME={name}".encode() in (process / "environ").read_bytes().split(b"\0")
        return is_job or f"slurmd.{name}.log" in _open_files(process)

    def _is_ours(self, process: Path) -> bool:
        """Whether a process was started for this very cluster. A zombie has no environment, and needs no end."""
        return f"SLURM_CONF={self.home / 'slurm.conf'}".encode() in (process / "environ").read_bytes().split(b"\0")

    def _kill_daemon(self, pid_file: str) -> None:
        path = self.home / pid_file
        # The number of a daemon that is gone may be somebody else's by now.
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if self._is_ours(Path("/proc", str(pid))):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End all daemons, the jobs that are left, and whatever else speaks to this cluster."""
        self._guard.end()


def _open_files(process: Path) -> str:
    names = []
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(os.readlink(descriptor))
    return "\n".join(names)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()

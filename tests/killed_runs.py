"""Runs of the command line in forked processes, one or several in a group, that are killed and gone on with."""

import ctypes
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from kill_recorder import KILL, RECORDS, Kill
from killed_records import Told, curves, differences, same_batches, state_of, together, wrong_samples

import kedit.distill
import kedit.kilm
import kedit.recipe.module
import kedit.running.application  # noqa: F401  or every child that is forked imports it all again
from kedit.cli import main
from kedit.running.runs import Run, existing_run, find_checkpoint

ALLOW = "tiny_facts,tiny_edits,kill_recorder,cpu_deepspeed"
"""Modules whose classes the configurations of tests name."""
MOMENTS = {
    "mid-accumulation": "accumulating",
    "mid-epoch": "step",
    "epoch end": "epoch",
    "in validation": "validation",
    "in save": "save",
}
"""Where a run is killed, and the recorder's event."""


@dataclass
class Group:
    """Processes of one run, which are killed together by their group's number: that of the first."""

    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)
    joined: bool = False

    def poll(self) -> bool:
        """Whether all have ended. The first is not reaped before, so that its number stays that of the group."""
        for pid in self.pids:
            if pid not in self.codes and (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
                self.codes[pid] = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return len(self.codes) == len(self.pids)

    def kill(self) -> None:
        """SIGKILL for all of them and their workers."""
        if self.joined:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.pids[0], signal.SIGKILL)

    def join(self, limit: float = 180, grace: float = 30) -> str:
        """Wait until all have ended, and end what is left.

        Args:
            limit: seconds, after which they are killed.
            grace: seconds that the others have once one was killed.

        Returns:
            What they had to be killed for; empty where they ended by themselves.
        """
        start, lost, why = time.monotonic(), 0.0, ""
        while not self.poll():
            now = time.monotonic()
            if any(code == -signal.SIGKILL for code in self.codes.values()):
                lost = lost or now
            if now - start > limit:
                why = f"not ended after {limit:.0f} s"
            elif lost and now - lost > grace:
                why = f"not ended {grace:.0f} s after another process was killed"
            if why:
                break
            time.sleep(0.02)
        self.kill()  # workers of a process that died alone, too
        self.joined = True
        for pid in self.pids:
            os.waitpid(pid, 0)
            self.codes.setdefault(pid, -signal.SIGKILL)
        return why

    @property
    def exit_codes(self) -> list[int]:
        return [self.codes[pid] for pid in self.pids]


def start(
    folder: Path,
    *arguments: str,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    log: Path | None = None,
) -> Group:
    """`python -m kedit fit` in processes of their own, forked so that nothing is imported again.

    Args:
        folder: in which it runs.
        arguments: after `fit`.
        processes: with more than one, they form a group as torchrun makes it.
        environment: variables for it.
        log: gets what is printed, by process: LOG.0, LOG.1.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    sys.stderr.flush()
    pids: list[int] = []
    for rank in range(processes):
        many = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "GROUP_RANK": "0",
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "tests"}  # fmt: skip
        pid = os.fork()
        if pid == 0:
            try:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with whoever started it
                os.environ |= (many if processes > 1 else {}) | (environment or {})
                _child(folder, ["fit", *arguments], None if log is None else log.with_name(f"{log.name}.{rank}"), pids)
            finally:
                os._exit(99)
        pids.append(pid)
        os.setpgid(pid, pids[0])
    return Group(pids)


def _child(folder: Path, arguments: list[str], log: Path | None, before: list[int]) -> None:
    with suppress(PermissionError):  # the parent may have been quicker
        os.setpgid(0, before[0] if before else 0)
    if log is not None:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(folder)
    torch.set_num_threads(1)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass
class Cell:
    """One kind of run.

    Args:
        folder: where its runs stand.
        config: gives the configuration of a run's name.
        processes: of a run.
        limit: seconds of an attempt.
    """

    folder: Path
    config: Callable[[str], str]
    processes: int = 1
    limit: float = 180

    def attempt(self, run: str, number: int, kill: Kill | None = None) -> tuple[list[int], str, Path]:
        """Start or go on with a run; the exit codes, what went wrong about its end, and the records."""
        (self.folder / f"{run}.yaml").write_text(self.config(run))
        records = self.folder / "records" / run / str(number)
        records.mkdir(parents=True)
        environment = {"KEDIT_ALLOW": ALLOW, "KEDIT_CACHE": str(self.folder / "cache"), RECORDS: str(records)}
        environment |= {} if kill is None else {KILL: str(kill)}
        group = start(
            self.folder, "--config", f"{run}.yaml", *(["--ckpt_path", "last"] if number else []),
            processes=self.processes, environment=environment, log=records / "log",
        )  # fmt: skip
        try:
            why = group.join(self.limit)
        finally:
            group.kill()
        return group.exit_codes, why, records

    def whole(self, run: str = "whole") -> Told:
        """The run that is left alone.

        Raises:
            AssertionError: it failed, or has not every sample once.
        """
        codes, why, records = self.attempt(run, 0)
        assert not any(codes), f"{codes} {why}\n{told_by(records)}"
        told = together([records], self.processes)
        assert told.batches
        assert not wrong_samples(told), wrong_samples(told)
        return told

    def draw(self, whole: Told, moment: str, kills: int, chance: random.Random) -> list[Kill]:
        """Kills at random events of a kind, in the order of the run."""
        events = [event for event in whole.events if event["event"] == MOMENTS[moment]]
        chosen = chance.sample(events, min(kills, len(events)))
        drawn = []
        for event in sorted(chosen, key=lambda event: (event["at"], event["n"])):
            kill = Kill(event["event"], event["at"], event["n"], event["rank"])
            kill.alone = self.processes > 1 and chance.random() < 0.3
            kill.writes = chance.randrange(event.get("writes", 0) + 1)
            kill.delay = chance.random() * 0.05 if moment == "mid-epoch" else 0.0
            drawn.append(kill)
        return drawn

    def killed(self, run: str, kills: Sequence[Kill], whole: Told, against: str = "whole") -> "Outcome":
        """Run until killed, go on, as often as there are kills, then to the end; and compare."""
        outcome = Outcome()
        attempts: list[Path] = []
        for kill in (*kills, None):
            codes, why, records = self.attempt(run, len(attempts), kill)
            attempts.append(records)
            outcome.runs += 1
            if why:
                outcome.wrong.append(f"{why}: exit codes {codes}, {kill}")
                return outcome
            if not any(codes):
                break
            was_killed = kill is not None and codes[kill.rank] == -signal.SIGKILL
            others = [code for rank, code in enumerate(codes) if kill is not None and rank != kill.rank]
            if not was_killed or 0 in others:
                outcome.wrong.append(f"exit codes {codes}, {kill}\n{told_by(records)}")
                return outcome
            outcome.kills.append(str(kill))
        told = together(attempts, self.processes)
        outcome.repeated = told.repeated
        outcome.wrong += told.contradictions[:3] + wrong_samples(told) + same_batches(whole, told)
        outcome.wrong += self._different_ends(against, run)
        return outcome

    def _different_ends(self, one: str, other: str) -> list[str]:
        states = [state_of(newest(self.folder, run)) for run in (one, other)]
        drawn = [curves(self.folder / "logs" / run) for run in (one, other)]
        return (differences(*states, "checkpoint") + differences(*drawn, "curve"))[:6]


@dataclass
class Outcome:
    """runs: attempts that were started; kills that were met; repeated: batches trained on again; wrong: differences."""

    runs: int = 0
    kills: list[str] = field(default_factory=list)
    repeated: int = 0
    wrong: list[str] = field(default_factory=list)


def told_by(records: Path) -> str:
    """The end of what the processes of an attempt printed."""
    return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(records.glob("log.*")))


def newest(folder: Path, run: str) -> Path:
    """What `--ckpt_path last` takes."""
    return find_checkpoint(existing_run(Run(run, False, str(folder / "checkpoints"), str(folder / "logs"))), "last")[0]

"""Start a training: as one process, with torchrun on this machine, or with torchrun on every node of a SLURM job.

`python -m pipeline.training.launch --processes 4 -m pipeline.stages.train ...` starts four processes here; with
`--nodes 2` inside a SLURM job it starts two on each of the job's two nodes, through srun. SIGTERM or Ctrl-C reaches
every process: the training saves its checkpoint, for as long as it needs, this command exits with 143 or 130, and the
same command continues from there. SLURM sends SIGTERM before the time limit when a job asks with
`--signal=TERM@SECONDS`; then the job is put back into SLURM's queue. SLURM's own limits hold besides.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys

import psutil

from pipeline.errors import PipelineError
from pipeline.stages import INTERRUPTED, run
from pipeline.stages.processes import PARENT

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
"""Exit status after SIGTERM, as a shell reports a command that the signal ended."""

FAILED_ON_A_NODE = 255
"""Exit status of one node of several after any failure but a signal to stop: srun then ends the others with SIGTERM and
returns the highest status of all, which must not read as `STOPPED`."""

MOST_REQUEUES = 50
"""Times that a job puts itself back into the queue: a time limit too short for one step must not repeat for ever."""


def torchrun(processes: int, rendezvous: list[str], command: list[str]) -> list[str]:
    """The command line of torchrun on one node, in this environment even if PATH names another; see `run_torchrun`."""
    own = [sys.executable, "-m", "pipeline.training.launch", "--torchrun", "--signals-to-handle=SIGHUP,SIGQUIT"]
    own.append(f"--log-dir={os.devnull}")  # or it leaves an empty folder among temporary files
    return [*own, *rendezvous, f"--nproc-per-node={processes}", *command]


def run_torchrun(arguments: list[str]) -> int:
    """Run torchrun in this process; returns the exit status of the first process that failed, 0 if none did.

    torchrun must not handle SIGTERM and SIGINT: it would kill the trainings 30 s later, saved or not. This process
    passes them on instead, and torchrun ends once the trainings have saved. The process that failed has the last word,
    because torchrun's report only names its number. Raises PipelineError where a signal ended it, which it cannot log.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as start

    logging.disable(logging.ERROR)  # torchrun's own, in this process alone
    is_stopped = False

    def stop(*_: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        trainings = psutil.Process().children()
        if not trainings:
            sys.exit(STOPPED)
        for training in trainings:
            with contextlib.suppress(psutil.NoSuchProcess):
                training.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    os.environ[PARENT] = str(os.getpid())  # of the trainings
    try:
        start(parse_args(arguments))
    except ChildFailedError as error:
        # Those that torchrun ended after the first failure count last: it notes times in whole seconds.
        rank, failure = min(error.failures.items(), key=lambda item: item[1].exitcode == -signal.SIGTERM)
        if is_stopped:
            return STOPPED
        if failure.exitcode > 0:
            return failure.exitcode
        raise PipelineError(
            f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}; SIGKILL mostly means that the "
            "machine's memory ran out; the same command continues from the last checkpoint"
        ) from None
    return 0


def several_nodes(nodes: int, processes: int, job: str, head: str, command: list[str]) -> list[str]:
    """The srun command line that starts torchrun once on each of a job's nodes.

    Every flag is explicit, because srun takes missing ones from variables that differ between a batch script and a job
    of Snakemake. The port follows the job's number: jobs that share a node have different ones, and it lies
    below the ports that systems hand out by themselves (from 32768). Without bindings torchrun's processes share
    the CPUs that the job has on a node. Unbuffered, or srun holds progress back that ends no line. The launcher on each
    node turns a signal that reached it into the exit status.
    """
    rendezvous = [
        f"--nnodes={nodes}",
        f"--rdzv-id={job}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={head}:{20_000 + int(job) % 12_000}",
    ]
    step = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none", "--mem=0"]
    on_each_node = [
        sys.executable,
        "-m",
        "pipeline.training.launch",
        "--run",
        *torchrun(processes, rendezvous, command),
    ]
    return ["srun", *step, "--unbuffered", "--kill-on-bad-exit=1", *on_each_node]


def ask_slurm(*command: str) -> str:
    """The first line that a SLURM command prints; PipelineError with its message when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout.strip():
        raise PipelineError(f"`{' '.join(command)}` failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout.split("\n")[0].strip()


def first_node(job: str, nodes: int) -> str:
    """The name of the first node of a SLURM job, which must have as many nodes as were asked for."""
    count, names = ask_slurm("squeue", "--noheader", f"--jobs={job}", "--format=%D %N").split()
    if int(count) != nodes:
        raise PipelineError(f"a training on {nodes} nodes in SLURM job {job}, which has {count}: {names}")
    return ask_slurm("scontrol", "show", "hostnames", names)


def wait_through_signals(command: list[str]) -> int:
    """Run a command to its end, pass SIGTERM and Ctrl-C on to it as SIGTERM, and return its exit status.

    After a signal a failed command has the status of that signal, 143 or 130.
    """
    received = 0
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal received
        received = number
        if process is not None:
            process.send_signal(signal.SIGTERM)  # also for Ctrl-C, of which srun ends a job that gets two

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # Processes that srun starts have another parent.
    ends_with_this = {} if command[0] == "srun" else {PARENT: str(os.getpid())}
    process = subprocess.Popen(command, env={**os.environ, **ends_with_this})
    if received:
        process.send_signal(signal.SIGTERM)
    status = process.wait()
    if status != 0 and received:
        return 128 + received
    return status if status >= 0 else 128 - status


def requeue(job: str) -> None:
    """Put this job back into SLURM's queue, unless SLURM is ending it for another reason or it went round too often."""
    if shutil.which("scontrol") is None:
        return
    state, restarts = ask_slurm("squeue", "--noheader", f"--jobs={job}", "--Format=State:20,RestartCnt:10").split()
    if state != "RUNNING":  # cancelled, or preempted and put back by SLURM itself
        return
    if int(restarts) >= MOST_REQUEUES:
        logger.warning("SLURM job %s was started %s times before; not putting it back again", job, restarts)
        return
    logger.warning("putting SLURM job %s back into the queue; it continues from the checkpoint", job)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if subprocess.run(["scontrol", "requeue", job]).returncode == 0:
        signal.sigtimedwait({signal.SIGTERM}, 60)  # SLURM ends the job; its own end could count as a failure


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.training.launch", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the SLURM job (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="training processes, all nodes together")
    command = parser.add_mutually_exclusive_group(required=True)
    command.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="the training's module and its options")
    command.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command.add_argument("--torchrun", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.run:
        status = wait_through_signals(args.run)
        sys.exit(status if status in (0, STOPPED, INTERRUPTED) else FAILED_ON_A_NODE)
    if args.torchrun:
        sys.exit(run_torchrun(args.torchrun))
    if args.nodes < 1 or args.processes < args.nodes or args.processes % args.nodes:
        parser.error(f"{args.processes} processes cannot be shared out among {args.nodes} nodes")

    job = os.environ.get("SLURM_JOB_ID")
    training = ["-m", *args.module]
    if args.processes == 1:
        status = wait_through_signals([sys.executable, *training])
    elif args.nodes == 1:
        # The machine's own name may not resolve, and torchrun would ask for it.
        status = wait_through_signals(torchrun(args.processes, ["--standalone", "--local-addr=127.0.0.1"], training))
    elif job is None:
        raise PipelineError(f"a training on {args.nodes} nodes needs a SLURM job of as many; set nodes to 1 elsewhere")
    else:
        head = first_node(job, args.nodes)
        status = wait_through_signals(several_nodes(args.nodes, args.processes // args.nodes, job, head, training))
    if status == STOPPED and job is not None:
        requeue(job)
    sys.exit(status)


if __name__ == "__main__":
    run(main)

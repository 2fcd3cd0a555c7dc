"""Kills at random moments: a study that was killed again and again must end as one that never was.

`python -m bench.faults --kills 100 --seed 0` runs a tiny study of almost every rule, once without a break. Then it runs
the study again in new folders. It kills, at random moments, the whole process group, the leader alone (Snakemake or the
launcher of a training) or one of the processes below it. After each kill it gives the same command again. It compares
each study that ended with the unbroken one, file by file. The exit status is 1 after any difference, any file or
process that is left behind, and any command that fails without a kill.

Not part of it: `import_weights`, which needs published weights, `average_weights`, `embed_split` and `describe_pool`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml

from bench.planning import ROOT
from bench.scheduling import SHIPPED
from pipeline.data.shards.format import FACTS_KEY
from pipeline.errors import PipelineError
from pipeline.files import read_json, sha256_of
from pipeline.stages import index_audio, index_shards, mix_soundscapes, shard_audio

RUN = "clotho_composed_audioset"
CLOTHO = {"train": "development", "validation": "validation", "test": "evaluation"}
SCALE = 0.02
STUDY = {
    "study": {"name": "tiny", "note": "Of no size to mean anything."},
    "soundscapes": {"scale": SCALE},
    "datasets": {
        "clotho": {"adapter": "clotho", "root": "results/raw/clotho", "captions": True, "splits": CLOTHO},
        "general": {
            "adapter": "folder", "root": "results/raw/general", "captions": True, "splits": {"train": "train"},
        },
        "audioset": {"shards": "ready", "captions": False, "splits": {"train": "balanced_train"}},
    },
    "shards": {"clips_per_shard": 32, "jobs": 1},
    "pretrain": {"epochs": 1, "batch_size": 4},
    "training": {"epochs": 10, "batch_size": 2},
    "runs": {RUN: {"objective": "composed", "labeled": ["clotho"], "unlabeled": ["audioset"]}},
    "sweep": {"grid": {"learning_rate": [0.001]}},
    "curves": {"audio": {"target": "clotho", "against": "unlabeled_hours", "lines": {"composed": [RUN]}}},
    "tables": {
        "table1": [
            {"target": "clotho", "method": "vanilla", "run": "vanilla"},
            {"target": "clotho", "method": "composed", "run": RUN},
        ]
    },
}  # fmt: skip
TARGETS = ["all", "results/sweep.csv", "results/reports/near_duplicates/clotho/development.json"]
SNAKEMAKE = ["snakemake", "--cores", "2", "--configfile", "tiny.yaml"]
SNAKEMAKE += ["--set-resources", "train:loader_workers=1", "--", *TARGETS]
TORCHRUN = [sys.executable, "-m", "pipeline.training.launch", "--processes", "2", "-m", "pipeline.stages.train"]
TORCHRUN += ["--objective", "composed", "--pretrained", "results/pretrained/mini", "--shards", "results/shards"]
TORCHRUN += ["--pairs", f"results/pairs/{RUN}/seed0.parquet", "--out", "results/distributed", "--workers", "1"]
TORCHRUN += ["--seed", "0", "--threads", "1", "--steps-per-checkpoint", "3"]
"""Snakemake starts several processes per training only on GPUs, so this training is started by hand."""
COMMANDS = {"snakemake": SNAKEMAKE, "launcher": TORCHRUN}

ROLES = {"launcher", "torchrun", "loader"}
"""Processes of a training that run no stage themselves."""
MARK = "FAULTS_STUDY"
"""Environment variable of all processes of a study, by which those without a parent are found."""
SECONDS_TO_MEET = 15
"""How long a kill waits for a stage that none has met."""
SECONDS_TO_END = 60
"""After it a process without a parent counts as left behind."""
SECONDS_OF_STUDY = 1200
"""After it a command counts as hanging. The whole study took 310 s on two cores that were busy with other work."""
EXCLUDED = {
    "logs": "messages with times",
    "benchmarks": "seconds and memory of jobs",
    ".snakemake": "records with times; its locks and marks of unfinished files are looked at",
    "tensorboard": "event files, with times in their names",
    "__pycache__": "compiled code",
}
"""Folders whose files differ between any two runs, and why."""
TIMES = {"parts", "wall_s", "clips_per_s", "peak_memory_gb", "flops_per_s", "steps_taken"}
"""Entries of training.json that differ between any two runs: time, memory and in how many parts it was trained."""


# --- the study -------------------------------------------------------------------------------------------------------


def make_project(folder: Path) -> None:
    """Write what ships, compiled, and a tiny study with one dataset of ready shards."""
    folder.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():  # compiled code may be written meanwhile
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "pipeline"], cwd=folder, check=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    (folder / "tmp").mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        make_shards(Path(temporary), folder / "ready" / "balanced_train")


def make_shards(work: Path, shards: Path) -> None:
    """Write the shards of an unlabeled dataset, as somebody may publish them."""
    raw, catalog, plan = work / "raw", work / "catalog.parquet", work / "plan.parquet"
    recordings = ["--recordings", str(ROOT / "data" / "recordings"), "--dataset", "audioset"]
    mix_soundscapes.main([*recordings, "--scale", str(SCALE), "--out", str(raw)])
    index_audio.main(
        ["--dataset", "audioset", "--split", "balanced_train", "--adapter", "audioset", "--root", str(raw)]
        + ["--unlabeled", "--clips-per-shard", "32", "--catalog", str(catalog), "--plan", str(plan)]
    )
    shard_audio.main(
        ["--catalog", str(catalog), "--plan", str(plan), "--sample-rate-hz", "16000", "--format", "wav"]
        + ["--shards", str(shards), "--done", str(work / "part.json")]
    )
    index_shards.main(
        ["--plan", str(plan), "--shards", str(shards), "--identities", str(shards / "identities.parquet")]
        + ["--manifest", str(shards / "manifest.parquet"), "--summary", str(shards / "manifest.json")]
    )


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder that must be the same in every run, by its path.

    Of temporary files (TMPDIR is the folder tmp) only the names.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if EXCLUDED.keys().isdisjoint(name.parts) and path.is_file():
            found[str(name)] = result_digest(path)
        elif name.parent == Path("tmp") and not is_snakemakes_own(path):
            found[str(name)] = "temporary"
    return found


def is_snakemakes_own(path: Path) -> bool:
    """Whether this is the empty folder that Snakemake leaves among temporary files when it is killed."""
    return path.name.startswith("snakemake") and path.is_dir() and not any(path.iterdir())


def result_digest(path: Path) -> str:
    """The SHA-256 of a file, or what a whole one holds without the entries that differ between any two runs.

    These are the times in training.json with its checksums, and in the row files of shards the digest of
    the raw files' times.
    """
    with contextlib.suppress(ValueError, PipelineError):  # a damaged file
        if path.name == "training.json":
            account = read_json(path)
            return json.dumps({name: value for name, value in account.items() if name not in TIMES}, sort_keys=True)
        if path.name == "made_from.json":
            record = read_json(path)
            return json.dumps({**record, "sha256": sorted(record["sha256"])}, sort_keys=True)
        if path.suffix == ".parquet" and FACTS_KEY in (metadata := pq.read_schema(path).metadata or {}):
            facts = json.loads(metadata[FACTS_KEY]) | {"sources": ""}
            rows = pq.read_table(path).replace_schema_metadata({FACTS_KEY: json.dumps(facts)})
            with io.BytesIO() as file:
                pq.write_table(rows, file)
                return hashlib.sha256(file.getvalue()).hexdigest()
    return sha256_of(path)


def differences(expected: dict[str, str], folder: Path) -> list[str]:
    """What a study that was killed has more, less or otherwise than the unbroken one."""
    found = contents(folder)
    lost = [f"missing: {name}" for name in sorted(expected.keys() - found.keys())]
    more = [f"left behind: {name}" for name in sorted(found.keys() - expected.keys())]
    other = [f"different: {name}" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    marks = [path for place in ("locks", "incomplete") for path in (folder / ".snakemake" / place).rglob("*")]
    marks += (folder / ".snakemake").glob("shell_tmp.*/*")
    return [*lost, *more, *other, *(f"left behind: {path.relative_to(folder)}" for path in marks if path.is_file())]


# --- processes -------------------------------------------------------------------------------------------------------


def start(words: list[str], folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """A command of a study as the leader of a process group; what it prints is appended to a file."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {MARK: str(folder), "PATH": path, "TMPDIR": str(folder / "tmp")}
    variables["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin make the pretraining far longer on a busy machine
    with output.open("ab") as file:
        return subprocess.Popen(
            words, cwd=folder, env=os.environ | variables, stdout=file, stderr=file, start_new_session=True
        )


def processes_of(folder: Path) -> list[psutil.Process]:
    """All living processes of a study, those without a parent too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def workers_below(leader: int) -> list[psutil.Process]:
    """The processes of stages below a leader, and the launchers of trainings."""
    with contextlib.suppress(psutil.Error):
        return [process for process in psutil.Process(leader).children(recursive=True) if kind_of(process)]
    return []


def kind_of(process: psutil.Process) -> str:
    """What a process is: the stage it runs, or one of the others of a training; empty for a shell or a dead process."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if Path(process.name()).name.startswith("python") or process.name().startswith("pt_"):
            if "pipeline.training.launch" in words:
                return "torchrun" if "--torchrun" in words else "launcher"
            stages = [word for word in words if word.startswith("pipeline.stages.")]
            parent = process.parent()
            if stages and parent is not None and parent.cmdline() == words:
                return "loader"
            return stages[0].removeprefix("pipeline.stages.") if stages else ""
    return ""


def shared_memory() -> set[str]:
    """The names in /dev/shm that no living process has open."""
    held = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            held |= {Path(file.path).name for file in process.memory_maps() if file.path.startswith("/dev/shm/")}
    return {path.name for path in Path("/dev/shm").glob("*")} - held


# --- kills -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What was killed, and the stages that were running."""

    target: str
    running: list[str]


@dataclass
class Injection:
    """Kills of one run of this script, and what went wrong."""

    chance: random.Random
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def report(self, study: str, message: str) -> None:
        print(f"WRONG {study}: {message}", flush=True)
        self.wrong.append(f"{study}: {message}")

    def break_until_done(self, name: str, folder: Path, most: int) -> None:
        """Give a command and kill, again and again, until it ends by itself or was killed often enough."""
        for _ in range(1000):
            output = folder.with_name(f"{folder.name}.{name}.log")
            began = output.stat().st_size if output.exists() else 0
            process = start(COMMANDS[name], folder, output)
            is_killed = len(self.kills) < most and self.kill_once(name, process, folder)
            try:
                status = process.wait(timeout=SECONDS_OF_STUDY)
            except subprocess.TimeoutExpired:
                self.report(folder.name, f"{name} hangs; its last lines:\n{tail(output, began)}")
                os.killpg(process.pid, signal.SIGKILL)
                continue
            if status == 0:
                return
            if not is_killed:
                self.report(folder.name, f"{name} failed without a kill; its last lines:\n{tail(output, began)}")
                if len(self.wrong) > 10:
                    sys.exit("too much is wrong")
        raise RuntimeError("no end")

    def kill_once(self, name: str, leader: subprocess.Popen[bytes], folder: Path) -> bool:
        """Kill something at a random moment; returns False if the command ended before."""
        if not self.wait_for_moment(leader):
            return False
        workers = {worker: kind for worker in workers_below(leader.pid) if (kind := kind_of(worker))}
        running = sorted(set(workers.values()) - ROLES) or ["no stage"]
        target = self.chance.choice(["group", name, "worker", "worker"] if workers else ["group", name])
        if target == "group":
            os.killpg(leader.pid, signal.SIGKILL)
        elif target == name:
            leader.kill()
        else:
            roles = {worker: kind if kind in ROLES else "stage" for worker, kind in workers.items()}
            role = self.chance.choice(sorted(set(roles.values())))
            target = f"worker: {role}"
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice([worker for worker in workers if roles[worker] == role]).kill()
        self.kills.append(Kill(target=target, running=running))
        print(f"{folder.name} kill {len(self.kills):>3}: {target:<18} while {', '.join(running)}", flush=True)
        return True

    def wait_for_moment(self, leader: subprocess.Popen[bytes]) -> bool:
        """Wait until some jobs have started, or one of a stage that no kill has met, and a random time more.

        Returns False if the command ended before.
        """
        met = ROLES.union(*(kill.running for kill in self.kills))
        jobs = self.chance.choice([None, None, 0, 1, 2, 3])
        seconds = self.chance.uniform(0, 5 if jobs == 0 else 2)
        latest = time.monotonic() + SECONDS_TO_MEET
        started: dict[int, str] = {}
        while leader.poll() is None:
            for worker in workers_below(leader.pid):
                started.setdefault(worker.pid, kind_of(worker))
            is_new = not met.issuperset(started.values()) if jobs is None else len(started) >= jobs
            if is_new or time.monotonic() > latest:
                time.sleep(seconds)
                return leader.poll() is None
            time.sleep(0.1)  # a look at all processes takes 10 ms of CPU time
        return False


def tail(output: Path, began: int) -> str:
    """The last lines that a command printed."""
    return "\n".join(output.read_bytes()[began:].decode(errors="replace").splitlines()[-12:])


def end_of(folder: Path) -> list[str]:
    """Wait for processes of a study whose parent was killed; returns those that do not end by themselves."""
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            found.append(f"left behind: process {process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
    return found


def shared_memory_left(before: set[str]) -> set[str]:
    """The new names in /dev/shm that no living process has open, for as long as those of other programs may last."""
    deadline = time.monotonic() + SECONDS_TO_END
    left = shared_memory() - before
    while left and time.monotonic() < deadline:
        time.sleep(1)
        left &= shared_memory()
    return left


def run_again(folder: Path) -> list[str]:
    """What the same command says once everything is there, if it is not that nothing is to be done."""
    output = folder.with_name(f"{folder.name}.again.log")
    status = start(SNAKEMAKE, folder, output).wait(timeout=SECONDS_OF_STUDY)
    text = tail(output, 0)
    return [] if status == 0 and "Nothing to be done" in text else [f"something was left to do:\n{text}"]


def inject(work: Path, kills: int, chance: random.Random) -> Injection:
    """Run the tiny study once without a break, then with kills until there were enough."""
    make_project(work / "project")
    unbroken = Path(shutil.copytree(work / "project", work / "unbroken"))
    injection = Injection(chance)
    began = time.monotonic()
    for name in COMMANDS:
        injection.break_until_done(name, unbroken, most=0)
    expected = contents(unbroken)
    print(f"unbroken: {len(expected)} files, {time.monotonic() - began:.0f} s", flush=True)
    for number in range(1, 1000):
        folder = Path(shutil.copytree(work / "project", work / f"study{number}"))
        before = shared_memory()
        for name in COMMANDS:
            injection.break_until_done(name, folder, kills)
        wrong = [*end_of(folder), *differences(expected, folder), *run_again(folder)]
        wrong += [f"left behind: /dev/shm/{name}" for name in sorted(shared_memory_left(before))]
        for message in wrong:
            injection.report(folder.name, message)
        print(f"{folder.name} ended: {'as the unbroken one' if not wrong else f'{len(wrong)} wrong'}", flush=True)
        if not wrong:
            shutil.rmtree(folder)
        if len(injection.kills) >= kills:
            break
    print(summary(injection, number, time.monotonic() - began))
    return injection


def summary(injection: Injection, studies: int, seconds: float) -> str:
    """The kills by target and by the stages that were running, and what was wrong."""
    targets = Counter(kill.target for kill in injection.kills)
    stages = Counter(stage for kill in injection.kills for stage in kill.running)
    lines = [f"{len(injection.kills)} kills in {studies} studies, {seconds:.0f} s"]
    lines += [f"  {count:>4}  {target}" for target, count in targets.most_common()]
    lines += ["while these ran (two may run at once)"]
    lines += [f"  {count:>4}  {stage}" for stage, count in stages.most_common()]
    left = sum("left behind" in message for message in injection.wrong)
    different = sum("different:" in message or "missing:" in message for message in injection.wrong)
    other = len(injection.wrong) - left - different
    return "\n".join([*lines, f"left behind: {left}; different or missing: {different}; other faults: {other}"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at least so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments (default: another one each time)")
    parser.add_argument("--keep", type=Path, help="empty or new folder to work in and to keep")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        work = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        work.mkdir(parents=True, exist_ok=True)
        injection = inject(work.resolve(), args.kills, random.Random(seed))
    sys.exit(1 if injection.wrong else None)


if __name__ == "__main__":
    main()

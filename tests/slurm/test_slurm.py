"""The workflow and its stages on a real SLURM cluster of two nodes: `make test-slurm`. testbed.sh brings it up."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from bench.scheduling import JOBS, ROOT, RUN, TESTBED, make_project
from pipeline.data.shards.partition import read_plan
from pipeline.stages import train

LONG = {"epochs": 60}
"""The plan of a training that is stopped after its first checkpoint."""
SECONDS = 600
"""After them something counts as hanging, on a machine that is busy with other checks, too."""
RUNNING: list[subprocess.Popen] = []

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """The test bed; one that is up already stays up."""
    was_up = subprocess.run([TESTBED, "status"], capture_output=True).returncode == 0
    if not was_up:
        if os.geteuid() != 0:
            pytest.skip("a SLURM cluster of one's own needs root")
        if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
            pytest.skip("there is no SLURM here, and no apt-get to install Debian's")
        subprocess.run([TESTBED, "up"], check=True)
    yield
    for process in RUNNING:  # those of tests that failed
        process.kill()
    if not was_up:
        subprocess.run([TESTBED, "down"], check=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A study to run on the cluster, its training on two nodes."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, nodes=2)
    return folder


@pytest.fixture(scope="module")
def unbroken(tiny_study, tmp_path_factory):
    """A training that nothing disturbs, in this process."""
    run = tmp_path_factory.mktemp("unbroken")
    train.main(training(tiny_study, run, **LONG))
    return run


def environment():
    """This Python's programs first, and one thread a process."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def snakemake(folder, *arguments):
    """Snakemake with the edited profile, started, with its output in a file: nobody empties a pipe meanwhile."""
    with (folder / "snakemake.log").open("w") as log:
        process = subprocess.Popen(
            ["snakemake", "--profile", "profiles/slurm", *arguments],
            cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    RUNNING.append(process)
    return process


def output_of(process, folder):
    """What Snakemake printed until its end."""
    process.wait(timeout=SECONDS)
    return (folder / "snakemake.log").read_text()


def ask(*command):
    """What a SLURM command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def submit(folder, script, *arguments, sbatch=(), variables=()):
    """The number of a job of an example script, with sbatch's options for this small cluster over the script's."""
    small = ["--mem=1500", "--cpus-per-task=1", "--time=20", *sbatch]
    return subprocess.run(
        ["sbatch", "--parsable", "--account=lab", *small, ROOT / "examples" / "slurm" / script, *map(str, arguments)],
        cwd=folder, env={**environment(), **dict(variables), "PYTHONPATH": str(ROOT)},
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


def wait_until(is_true, what):
    """Look twice a second until something is true."""
    end = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def state_of(job):
    """The state of a job by the accounting, that of an array once all of its tasks have it."""
    states = set(ask("sacct", "-X", "-n", "-P", "--format=State", f"--jobs={job}").split("\n"))
    return states.pop().split(" ")[0] if len(states) == 1 else "MIXED"


def wait_for_end(job, state="COMPLETED", log=None):
    ended = {"COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED"}
    wait_until(lambda: state_of(job) in ended, f"job {job} does not end: {state_of(job)}")
    assert state_of(job) == state, log.read_text() if log is not None else job


def text_of(path):
    return path.read_text() if path.exists() else ""


def training(study, run, objective="finetune", **plan):
    """The options of a training of the tiny study."""
    return [
        "--pretrained", str(study.pretrained), "--pairs", str(study.pairs(objective, **plan)),
        "--shards", str(study.shards), "--seed", "0", "--out", str(run), "--objective", objective,
        "--learning-rate=0.001", "--device", "cpu",
    ]  # fmt: skip


def lose_node(node, job):
    """Leave of a node and of a job there what a power cut leaves: no process, and a controller that calls it down."""
    daemon = Path("/etc/slurm/slurm.conf").resolve().parents[1] / "run" / f"slurmd-{node}.pid"
    os.kill(int(daemon.read_text()), signal.SIGKILL)
    steps, processes = [], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"slurmstepd: [{job}."):
                steps.append(process)
            elif process.environ().get("SLURM_JOB_ID") == job:
                processes.append(process)
    for process in steps + processes:  # a step that outlived its processes would report them as failed
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")


def shards_of(folder):
    """The shards that a study has made."""
    return {path.relative_to(folder).as_posix() for path in (folder / "results" / "shards").glob("*/*/*.tar")}


def losses_of(run):
    """The loss of every step of a training."""
    return pq.read_table(run / "training.parquet")["loss"].to_pylist()


def assert_same_weights(first, second):
    """Equal to the bit."""
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(two[name], one[name]), name


def test_an_array_makes_the_shards_that_the_stage_makes(tiny_study, tmp_path):
    catalog = tiny_study.folder / "catalogs" / "labeled" / "train"
    shards = [assignment.shard for assignment in read_plan(catalog.with_suffix(".shards.parquet"))]
    assert len(shards) > 1
    job = submit(
        tmp_path, "shard_audio.sh", catalog, tmp_path / "split", "--sample-rate-hz=16000", "--min-duration-s=0.1",
        sbatch=["--array=0-1"],
    )  # fmt: skip
    wait_for_end(job)
    for shard in shards:
        expected = tiny_study.shards / "labeled" / "train" / f"{shard}.tar"
        assert (tmp_path / "split" / f"{shard}.tar").read_bytes() == expected.read_bytes()


def test_a_split_is_embedded_on_one_gpu_and_evaluated(tiny_study, tmp_path):
    shards = tiny_study.shards / "labeled" / "train"
    embeddings = ["--embeddings", tmp_path / "embeddings.npz"]
    job = submit(
        tmp_path, "embed.sh", "--model", tiny_study.pretrained, "--shards", shards, "--windows", "mean",
        "--device", "cpu", *embeddings,
    )  # fmt: skip
    results = ["--metrics", tmp_path / "metrics.json", "--ranks", tmp_path / "ranks.parquet"]
    results += ["--contributions", tmp_path / "contributions.parquet"]
    names = ["--run", "vanilla", "--seed", "0", "--target", "labeled", "--split", "train"]
    after = submit(
        tmp_path, "cpu_stage.sh", "evaluate", *embeddings, *names, *results, sbatch=[f"--dependency=afterok:{job}"]
    )
    wait_for_end(job)
    wait_for_end(after)
    assert "gres/gpu=1" in ask("sacct", "-X", "-n", "-P", "--format=AllocTRES", f"--jobs={job}")
    assert (tmp_path / "metrics.json").exists()


def test_two_trainings_that_share_two_nodes_have_the_losses_of_one_process(tiny_study, tmp_path):
    train.main(training(tiny_study, tmp_path / "one"))
    gpus = ["--gpus-per-node=1", "--exclusive=user"]
    jobs = {
        name: submit(
            tmp_path, "train_two_nodes.sh", *training(tiny_study, tmp_path / name),
            sbatch=gpus, variables={"PROCESSES": "2"},
        )
        for name in ("first", "second")
    }  # fmt: skip
    for name, job in jobs.items():
        wait_for_end(job, log=tmp_path / f"train-{job}.log")
        assert ask("sacct", "-X", "-n", "-P", "--format=NNodes", f"--jobs={job}") == "2"
        # Losses, because Adam turns the rounding of gradients that should be zero into steps of full size.
        assert losses_of(tmp_path / name) == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)
    times = [ask("sacct", "-X", "-n", "-P", "--format=Start,End", f"--jobs={job}").split("|") for job in jobs.values()]
    assert max(start for start, _ in times) < min(end for _, end in times), "the two did not run at the same time"


def test_a_training_that_was_cancelled_ends_with_the_same_weights_when_it_is_submitted_again(
    tiny_study, tmp_path, unbroken
):
    run = tmp_path / "run"

    def start():
        return submit(tmp_path, "train.sh", *training(tiny_study, run, **LONG), "--steps-per-checkpoint", "5",
                      sbatch=["--gpus=1"], variables={"PROCESSES": "1"})  # fmt: skip

    cancelled = start()
    wait_until((run / "checkpoints" / "last.pt").exists, "no checkpoint")
    ask("scancel", cancelled)
    log = tmp_path / f"train-{cancelled}.log"
    wait_until(lambda: "the same command continues from there" in log.read_text(), "it does not save")
    wait_until(lambda: cancelled not in ask("squeue", "-h", "--format=%i").split(), "it does not end")
    assert state_of(cancelled) == "CANCELLED", "a cancelled job must not put itself back into the queue"

    job = start()
    log = tmp_path / f"train-{job}.log"
    wait_for_end(job, log=log)
    assert "resuming from" in log.read_text()
    assert_same_weights(unbroken, run)


def test_a_training_that_runs_out_of_time_saves_and_goes_on_in_the_same_job(tiny_study, tmp_path):
    endless = training(tiny_study, tmp_path / "run", epochs=2000)
    limits = ["--gpus=1", "--signal=TERM@20"]
    job = submit(tmp_path, "train.sh", *endless, sbatch=limits, variables={"PROCESSES": "1"})
    submitted, log = time.monotonic(), tmp_path / f"train-{job}.log"
    wait_until(lambda: "loss=" in text_of(log), "no training")
    # SLURM looks at the limits every 30 s and sends the signal up to 30 s too early, so half a minute more is enough.
    minutes = math.ceil((time.monotonic() - submitted + 30) / 60)
    ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_until(lambda: "resuming from" in text_of(log), "the job is not started again")
    ask("scancel", job)
    output = log.read_text()
    assert f"putting SLURM job {job} back into the queue" in output
    assert int(output.split("asked to stop: saved step ")[1].split(" ")[0]) > 0


def test_a_signal_to_two_nodes_saves_and_puts_the_job_back(tiny_study, tmp_path):
    run = tmp_path / "run"
    endless = [*training(tiny_study, run, epochs=2000), "--workers=1", "--steps-per-checkpoint", "5"]
    job = submit(
        tmp_path, "train_two_nodes.sh", *endless,
        sbatch=["--gpus-per-node=1", "--exclusive=user"], variables={"PROCESSES": "2"},
    )  # fmt: skip
    wait_until((run / "checkpoints" / "last.pt").exists, "no checkpoint")
    ask("scancel", "--signal=TERM", job)
    log = tmp_path / f"train-{job}.log"
    wait_until(lambda: "asked to stop: saved step" in text_of(log), "it does not save")
    wait_until(lambda: f"putting SLURM job {job} back" in text_of(log), "it is not put back")
    ask("scancel", job)


def test_a_training_goes_on_where_another_node_left_it(tiny_study, tmp_path, unbroken):
    run = tmp_path / "run"
    job = submit(
        tmp_path, "train.sh", *training(tiny_study, run, **LONG), "--steps-per-checkpoint", "5",
        sbatch=["--gpus=1"], variables={"PROCESSES": "1"},
    )  # fmt: skip
    wait_until((run / "checkpoints" / "last.pt").exists, "no checkpoint")
    node = ask("squeue", "-h", f"--jobs={job}", "--format=%N")
    lose_node(node, job)
    try:
        wait_until(lambda: job not in ask("squeue", "-h", "--format=%i").split(), "it does not end")
        assert state_of(job) == "COMPLETED", (tmp_path / f"train-{job}.log").read_text()
        assert ask("sacct", "-X", "-n", "-P", "--format=NodeList", f"--jobs={job}") != node
        assert "resuming from" in (tmp_path / f"train-{job}.log").read_text()
        assert_same_weights(unbroken, run)
    finally:
        subprocess.run([TESTBED, "up"], check=True)


def test_everything_up_to_a_stage_and_nothing_after_it(project):
    process = snakemake(project, "--until", "shard_audio", "--configfile", "tiny.yaml")
    output = output_of(process, project)
    assert process.returncode == 0, output[-6000:]
    shards = shards_of(project)
    splits = {shard.rpartition("/")[0] for shard in shards}
    assert output.count("rule shard_audio:") == JOBS * len(splits), "the plan depends on a setting alone"
    assert not (project / "results" / "pairs").exists()


def test_the_whole_study_runs_with_a_training_on_two_nodes_that_is_preempted(project):
    shards = shards_of(project)
    (project / "longer.yaml").write_text("training: {epochs: 120}\n")  # time to find the job and to stop it
    process = snakemake(project, "results/table1.tex", "--configfile", "tiny.yaml", "longer.yaml")
    log = project / "logs" / "train" / RUN / "seed0.log"
    wait_until(lambda: "loss=" in text_of(log) or process.poll() is not None, "no training")
    assert process.poll() is None, output_of(process, project)[-6000:]
    jobs = ask("squeue", "-h", "--format=%i %k").split("\n")
    [job] = [line.split()[0] for line in jobs if "rule_train_" in line]
    ask("scancel", "--signal=TERM", job)  # what SLURM sends ahead of a time limit
    output = output_of(process, project)
    assert process.returncode == 0, output[-6000:]
    assert "resuming from" in log.read_text()
    assert (project / "results" / "table1.tex").exists()
    assert shards <= shards_of(project)


def test_a_shard_that_fails_costs_the_others_nothing(project):
    """A raw tar that is damaged after it was catalogued: its clips' shards fail, named; the others stay."""
    raw = project / "data" / "field" / "all"
    raw.mkdir(parents=True)
    for number in range(3):
        with tarfile.open(raw / f"{number}.tar", "w") as tar:
            for clip in range(16):
                sound = io.BytesIO()
                soundfile.write(sound, np.full(8000, 0.1), 16_000, format="WAV")
                member = tarfile.TarInfo(f"{number}_{clip:02}.wav")
                member.size = len(sound.getvalue())
                tar.addfile(member, io.BytesIO(sound.getvalue()))
    field = {"adapter": "webdataset", "root": "data/field", "captions": False, "splits": {"train": "all"}}
    study = yaml.safe_load((project / "config.yaml").read_text())
    study["datasets"]["field"] = field
    study["shards"] = {"clips_per_shard": 8, "min_duration_s": 0.1}
    (project / "field.yaml").write_text(yaml.safe_dump(study))
    asked = ["results/shards/field/all/manifest.json", "--configfile", "field.yaml"]
    catalog = project / "results" / "catalogs" / "field" / "all.parquet"
    process = snakemake(project, str(catalog.relative_to(project)), *asked[1:])
    assert process.wait(timeout=SECONDS) == 0, output_of(process, project)[-6000:]
    damaged = raw / "1.tar"
    whole, times = damaged.read_bytes(), damaged.stat()
    damaged.write_bytes(whole[: len(whole) // 2])
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk damages it: no newer than the catalog

    # These rules alone: the listing of the raw tree shows another size, so that the catalog would be made first.
    alone = ["--allowed-rules", "shard_audio", "index_shards"]
    process = snakemake(project, *asked, *alone)
    output = output_of(process, project)
    assert process.returncode == 1
    assert "data/field/all/1.tar: ends inside the member" in output
    assert output.count("has been submitted") == JOBS, "a job was tried again"
    folder = project / "results" / "shards" / "field" / "all"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert made

    damaged.write_bytes(whole)
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    process = snakemake(project, *asked, *alone)
    output = output_of(process, project)
    assert process.returncode == 0, output[-6000:]
    assert len(list(folder.glob("*.tar"))) == len(read_plan(catalog.with_suffix(".shards.parquet"))) > len(made)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a shard that was there is made again"


def test_a_failing_jobs_message_reaches_the_user_and_is_not_tried_again(project):
    (project / "large.yaml").write_text("training: {batch_size: 1000}\n")
    process = snakemake(project, f"results/pairs/{RUN}/seed0.parquet", "--configfile", "tiny.yaml", "large.yaml")
    output = output_of(process, project)
    assert process.returncode == 1
    assert "batch_size is 1000, but the labeled set holds" in output
    assert output.count("has been submitted") == 1


def test_a_stage_with_a_gpu_gets_one_of_its_model(project):
    path = project / "profiles" / "slurm" / "config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["set-resources"]["embed"] |= {"gpu": 1, "gpu_model": "fake"}
    path.write_text(yaml.safe_dump(profile))
    embeddings = "results/evaluations/vanilla/seed0/clotho/embeddings.npz"
    # Forced, because another device alone is no reason for Snakemake to make them again.
    output = output_of(snakemake(project, embeddings, "--force", "--configfile", "tiny.yaml"), project)
    assert "has been submitted" in output, output[-6000:]
    job = output.split("has been submitted with SLURM jobid ")[1].split(" ")[0]
    facts = ask("sacct", "-X", "-n", "-P", "--format=Partition,AllocTRES", f"--jobs={job}")
    assert facts.startswith("gpu|") and "gres/gpu=1" in facts
    if not torch.cuda.is_available():
        assert "asked for a GPU, but torch finds none" in output

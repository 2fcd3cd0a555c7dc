"""Check that the project works on this GPU, and how fast: tests, the training step, a short run, a report.

The report, `report.md` and `report.json` in the folder `--out`, names the card and the versions. The parts:

- the tests marked `gpu`;
- `bench.train` at the paper's batch of 256, with and without torch.compile;
- a short composed training by the stage `train`, with loader processes, with and without `--compile`: ms-clap 2023 at
  full size with random weights, on shards of noise that the project's own stages make;
- one step's losses and gradient, and embeddings, in bfloat16 on the GPU compared with float32 on the CPU;
- whether the same steps, taken twice, give bit-identical weights.

Nothing is downloaded. A failed part is reported, also in the exit status, and the other parts still run. The check
takes some minutes on a data-centre GPU; `--device cpu --tiny` tries the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from bench.train import gpt2_tokenizer, write_study
from pipeline.evaluation.embedding import embed_windows
from pipeline.files import write_atomically, write_json
from pipeline.models import msclap2023, save_model
from pipeline.models.clap import ClapModel
from pipeline.models.devices import add_device_argument, choose_device, device_name
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.micro_batches import micro_batches
from pipeline.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchaudio", "transformers", "msclap", "tokenizers", "numpy", "pyarrow")
PARTS = ("tests", "step", "embeddings", "repeat", "run", "run_compiled", "bench")
TOLERANCE = 0.02
"""Largest relative difference of a loss that bfloat16's eight bits of precision explain."""
REPEATED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the parts."""

    batch_size: int
    micro_batch: int
    """Clips encoded together: the backward pass of 256 clips does not fit into 80 GB."""
    run_steps: int
    bench_steps: int
    workers: int
    compared_clips: int
    """Clips of the step that is also computed on the CPU."""
    embedded_clips: int


FULL = Sizes(
    batch_size=256, micro_batch=128, run_steps=40, bench_steps=10, workers=8, compared_clips=16, embedded_clips=512
)
TINY = Sizes(batch_size=2, micro_batch=1, run_steps=2, bench_steps=1, workers=1, compared_clips=2, embedded_clips=2)


class PartFailed(Exception):
    """A part of the check failed."""


# --- parts -----------------------------------------------------------------------------------------------------------


def command(words: Sequence[object], log: Path, timeout_s: int) -> float:
    """Run Python with these arguments, its output in `log`, and return the seconds; PartFailed if it fails."""
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, *map(str, words)],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PartFailed(f"not done after {timeout_s} s; see {log.name}") from None
    if done.returncode:
        raise PartFailed(f"exit status {done.returncode}; see {log.name}: {last_line(log)}")
    return time.perf_counter() - began


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else "no output"


def run_tests(out: Path) -> dict[str, Any]:
    """Run the tests marked `gpu`."""
    log = out / "tests.log"
    seconds = command(["-m", "pytest", "-q", "-rfEs", "-m", "gpu", "-p", "no:cacheprovider"], log, 240)
    return {"seconds": seconds, "outcome": last_line(log)}


def run_bench(out: Path, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Run `bench.train` and return its JSON."""
    file = out / "bench_train.json"
    words = ["-m", "bench.train", "--device", device.type, "--batch-size", sizes.batch_size, "--json", file]
    words += ["--micro-batch", sizes.micro_batch, "--steps", sizes.bench_steps, "--workers", sizes.workers]
    seconds = command(words, out / "bench_train.log", 420)
    return {"seconds": seconds, **json.loads(file.read_text(encoding="utf-8"))}


def run_training(out: Path, study: Study, sizes: Sizes, device: torch.device, *, compiled: bool) -> dict[str, Any]:
    """Run the stage `train` on the shards, and return its losses, speed and memory."""
    name = "run_compiled" if compiled else "run"
    run = study.folder / name
    words = ["-m", "pipeline.stages.train", "--pretrained", study.pretrained, "--pairs", study.pairs]
    words += ["--shards", study.shards, "--seed", 0, "--out", run, "--device", device.type]
    words += ["--objective", "composed", "--encoder-regularisation", "--micro-batch", sizes.micro_batch]
    words += ["--workers", sizes.workers, "--compile", int(compiled)]
    seconds = command(words, out / f"{name}.log", 240)
    losses = pq.read_table(run / "training.parquet")["loss"].to_pylist()
    account = json.loads((run / "training.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **{name: account[name] for name in ("clips_per_s", "peak_memory_gb", "model_flops_utilization")},
    }


def compare_step(model: ClapModel, batch: Batch, device: torch.device) -> dict[str, Any]:
    """Compare one step's losses and gradient on both devices; PartFailed if they differ by `TOLERANCE` or more.

    The encoders are deterministic, and f_a2t has no dropout.
    """
    found: dict[str, dict[str, float]] = {}
    gradients = []
    for place in (torch.device("cpu"), device):
        model.to(place).set_training_mode()
        model.zero_grad(set_to_none=True)
        losses = CompositionLoss(model, TrainingSettings(objective="composed"))(batch)
        losses["loss"].backward()
        found[place.type] = {name: value.item() for name, value in losses.items()}
        gradients.append(
            torch.cat([value.grad.flatten().double().cpu() for value in model.parameters() if value.grad is not None])
        )
    cpu, other = found["cpu"], found[device.type]
    difference = max(abs(other[name] - value) / abs(value) for name, value in cpu.items())
    facts = {
        "clips": len(batch.keys),
        "cpu": cpu,
        device.type: other,
        "largest_relative_difference": difference,
        "gradient_cosine": torch.cosine_similarity(*gradients, dim=0).item(),
    }
    if not difference < TOLERANCE:
        raise PartFailed(f"losses differ by {difference:.2%}: {json.dumps(facts)}")
    return facts


def compare_embeddings(model: ClapModel, batch: Batch, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Compare the embeddings of one batch on both devices, and measure the windows per second of many."""
    windows = [[window_S] for window_S in batch.labeled_BS.numpy()]
    model.eval()
    on_cpu = torch.from_numpy(embed_windows(model.to("cpu"), windows, len(windows), 64))
    on_device = torch.from_numpy(embed_windows(model.to(device), windows, len(windows), 64))
    many = (windows * -(-sizes.embedded_clips // len(windows)))[: sizes.embedded_clips]
    began = time.perf_counter()
    embed_windows(model, many, len(many), 64)
    seconds = time.perf_counter() - began
    return {
        "smallest_cosine": torch.cosine_similarity(on_cpu, on_device).min().item(),
        "windows_per_s": len(many) / seconds,
    }


def repeat_steps(model: ClapModel, batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return the largest difference between the weights of two identical trainings of a few steps on one batch."""
    ends = []
    for _ in range(2):
        twin = copy.deepcopy(model).to(device)
        twin.set_training_mode(encoder_regularisation=True)
        objective = CompositionLoss(twin, TrainingSettings(objective="composed"))
        trained = [value for value in twin.parameters() if value.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=1e-5, fused=True)
        for step in range(REPEATED_STEPS):
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=True)
            objective(batch)["loss"].backward()
            optimizer.step()
        ends.append([value.detach().cpu() for value in trained])
    difference = max((one - two).abs().max().item() for one, two in zip(*ends, strict=True))
    return {"steps": REPEATED_STEPS, "largest_difference": difference}


# --- study -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Study:
    """The inputs of the short run."""

    folder: Path
    pairs: Path
    shards: Path
    pretrained: Path


def make_study(folder: Path, sizes: Sizes) -> tuple[Study, ClapModel]:
    """Make shards and pairs of 3 s clips of noise, two steps per epoch, and ms-clap 2023 with random weights."""
    tokenizer = gpt2_tokenizer()
    clips = 2 * sizes.batch_size
    pairs, shards = write_study(
        folder, tokenizer, clips=clips, batch_size=sizes.batch_size, epochs=sizes.run_steps // 2, clip_s=3
    )
    torch.manual_seed(0)
    model = msclap2023.build(tokenizer)
    save_model(model, folder / "pretrained")
    model.add_a2t(dropout=0.0)
    return Study(folder=folder, pairs=pairs, shards=shards, pretrained=folder / "pretrained"), model


# --- report ----------------------------------------------------------------------------------------------------------


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Return the device and the versions."""
    facts: dict[str, Any] = {
        "device": device.type,
        "hardware": device_name(device),
        "processor": device_name(torch.device("cpu")),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "gpu_memory_gb": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return facts


def report_lines(facts: dict[str, Any]) -> list[str]:
    """Return the report in Markdown."""
    lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in facts["machine"].items()), ""]
    lines += [f"{facts['seconds']:.0f} s in all, of them {facts['study_s']:.0f} s to make shards and weights.", ""]
    for name, part in facts["parts"].items():
        lines += [f"## {name}", ""]
        if "failed" in part:
            lines += [f"**Failed**: {part['failed']}", ""]
            continue
        for key, value in part.items():
            shown = f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if key != "projection" else value
            lines.append(f"- {key}: {shown}")
        lines.append("")
    return lines


def check(out: Path, names: Sequence[str], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Run the parts one after another, write the report after each, and return it."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        study, model = make_study(Path(folder), sizes)
        study_s = time.perf_counter() - began
        batch = next(micro_batches(PairedBatches(study.pairs, study.shards)[0], sizes.compared_clips))
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "tests": lambda: run_tests(out),
            "step": lambda: compare_step(model, batch, device),
            "embeddings": lambda: compare_embeddings(model, batch, sizes, device),
            "repeat": lambda: repeat_steps(model, batch, device),
            "run": lambda: run_training(out, study, sizes, device, compiled=False),
            "run_compiled": lambda: run_training(out, study, sizes, device, compiled=True),
            "bench": lambda: run_bench(out, sizes, device),
        }
        facts: dict[str, Any] = {"machine": machine_facts(device), "study_s": study_s, "parts": {}}
        for name in names:
            logger.info("%s", name)
            try:
                facts["parts"][name] = parts[name]()
            except Exception as error:  # logged, so that the other parts still run
                logger.exception("%s failed", name)
                facts["parts"][name] = {"failed": str(error) or type(error).__name__}
            finally:
                model.to("cpu").zero_grad(set_to_none=True)
                if device.type == "cuda":
                    torch.cuda.empty_cache()  # the next part is another process
            facts["seconds"] = time.perf_counter() - began
            write_json(facts, out / "report.json")
            with write_atomically(out / "report.md") as temporary:
                temporary.write_text("\n".join(report_lines(facts)), encoding="utf-8")
    return facts


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gpu_check"), help="folder of report and logs")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", choices=PARTS, help=f"parts to run: {', '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to try this script")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    if device.type == "cpu" and not args.tiny:
        parser.error("there is no GPU to check; --device cpu --tiny tries the script")
    facts = check(args.out, args.only or PARTS, TINY if args.tiny else FULL, device)
    print("\n".join(report_lines(facts)))
    if failed := [name for name, part in facts["parts"].items() if "failed" in part]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(sys.argv[1:])

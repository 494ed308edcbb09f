"""A step as a GPU would run it, on pretended tensors: it waits for nothing, and no call mixes devices.

torch's FakeTensorMode knows shapes, dtypes and devices, no numbers. So whatever asks for a number, for which the host
would wait for the GPU, raises, and so does a call on tensors of two devices. A CPU build of torch has no backward pass
for CUDA tensors, pretended ones included: there the whole step is taken on pretended CPU tensors, and its forward pass,
loss, clipping and update on pretended CUDA tensors.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lccp_sim.config import Config
from lccp_sim.data.tasks import Lesson
from lccp_sim.models import kernels
from lccp_sim.models.transformer import Transformer
from lccp_sim.monitors.probe import _answer_loss
from lccp_sim.train.loop.loader import LccpData
from lccp_sim.train.loop.module import LccpModule
from lccp_sim.train.parallel.sharding import clip

T = 24
CASES: dict[str, dict[str, Any]] = {
    "norm after rope": {"model.qk_norm": "after_rope"},
    "norm before rope": {"model.qk_norm": "before_rope"},
    "norm of all heads": {"model.qk_norm": "full_width"},
    "no norm": {"model.qk_norm": "none", "model.qkv_bias": True, "model.out_bias": True},
    "windows": {"model.window_tokens": 5},
    "own head": {"model.tie_embeddings": False},
    "dense first": {"model.num_dense_layers": 1, "model.d_dense": 48},
    "all dense": {"model.num_dense_layers": 2, "model.d_dense": 48, "monitors.routing": None},
    "sigmoid in groups": {"model.router.scores": "sigmoid", "model.router.num_groups": 2},
}


class HostIsReal(TorchFunctionMode):
    """What is asked of tensors of the host alone (the bounds of documents) gets an answer; a copy to a GPU is fake."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        sent = func is Tensor.to and any(isinstance(each, torch.device) and each.type != "cpu" for each in args)
        host = tensors and not sent and not any(isinstance(each, FakeTensor) for each in tensors)
        with unset_fake_temporarily() if host else nullcontext():
            return func(*args, **(kwargs or {}))


class CopiesGoAlong(TorchDispatchMode):
    """A copy from device to device that the host would wait for fails."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            same = args[0].device.type == torch.device(kwargs.get("device") or args[0].device).type
            assert same or kwargs.get("non_blocking"), "a copy that waits"
        return func(*args, **kwargs)


def batch(padded: bool) -> dict[str, Any]:
    """Two rows of three documents and one, as the feed gives them."""
    tokens, text = torch.ones(2, T, dtype=torch.int64), torch.arange(T) < torch.tensor([[T], [T - 7]])
    found = {"tokens_BT": tokens, "targets_BT": tokens, "positions_BT": torch.arange(T).expand(2, T)}
    found |= {"learn_R": torch.from_numpy(np.flatnonzero(text.numpy()))} | ({"text_BT": text} if padded else {})
    return found | {"bounds": torch.tensor([0, 9, 16, T, 2 * T]), "names": ["a"], "target_count": 2 * T - 7}


def step(config: Config, device: str, bf16: bool, padded: bool) -> None:
    """A step of training on pretended tensors."""
    given = batch(padded)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, HostIsReal(), CopiesGoAlong():
        given = {k: fake.from_tensor(v) if isinstance(v, Tensor) and k != "bounds" else v for k, v in given.items()}
        with torch.device(device):
            model = Transformer(config.model, 64)
        module = LccpModule(config, model, {})
        module.step_loss, module.step_aux = (torch.zeros((), device=device) for _ in range(2))
        module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_step=0)  # type: ignore[assignment]
        optimizer = module.configure_optimizers()["optimizer"]
        kind, backward = torch.device(device).type, device == "cpu" or torch.backends.cuda.is_built()
        with torch.set_grad_enabled(backward):
            torch.set_autocast_enabled(kind, bf16)  # torch.autocast does not, without a GPU
            loss = module.training_step(module.transfer_batch_to_device(given, torch.device(device), 0), 0)
            torch.set_autocast_enabled(kind, False)
        if backward:
            loss.backward()
        for parameter in model.parameters():
            if not backward:
                parameter.grad = torch.empty_like(parameter)
            assert parameter.grad is not None and parameter.grad.device == parameter.device
        clip(model.parameters(), 1.0)
        optimizer.step()
        assert all(parameter.device == torch.device(device) for parameter in model.parameters())
        assert optimizer.param_groups[0]["fused"]


@pytest.fixture(autouse=True)
def no_guard() -> Iterator[None]:
    """A CPU build of torch has none who minds which CUDA device is current; meta's, who does nothing, stands in."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        guards = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError) as error:
        pytest.skip(f"this build of torch hides who guards a device: {error}")
    cuda, meta = 1, 14
    before = guards[cuda]
    guards[cuda] = before or guards[meta]
    yield
    guards[cuda] = before


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen by device. torch cannot pretend to draw weights, nor grouped products but in bf16."""
    monkeypatch.setattr(kernels, "divides", lambda weight: False)
    for layer in (nn.Linear, nn.Embedding):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    real = F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", lambda a, b, offs: real(a.bfloat16(), b.bfloat16(), offs=offs).to(a.dtype))


@pytest.mark.parametrize(("bf16", "padded"), [(False, False), (True, True)], ids=["fp32", "bf16, padded"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(
    make: Callable[..., Config], case: str, device: str, bf16: bool, padded: bool
) -> None:
    experts = {"model.experts": "grouped_mm"} if device == "cpu" else {}  # which auto takes on a GPU
    step(make(CASES[case] | experts), device, bf16, padded)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_step_of_the_probe_searches_for_nothing(make: Callable[..., Config], device: str) -> None:
    lessons = [Lesson(np.arange(1, n + 1), ((3, 5), (n - 2, n))) for n in (9, 12)]
    bounds = torch.tensor([0, 11, 22])
    with FakeTensorMode(allow_non_fake_inputs=True), HostIsReal(), torch.no_grad():
        with torch.device(device):
            model = Transformer(make({"model.experts": "grouped_mm"}).model, 64)
        model.forward = partial(model.forward, bounds=bounds)  # type: ignore[method-assign]
        assert _answer_loss(model, lessons).device == torch.device(device)


def test_batches_for_a_gpu_lie_in_pinned_memory() -> None:
    def pinned(kind: str) -> bool:
        data = LccpData(None, 1, 4)  # type: ignore[arg-type]
        strategy = SimpleNamespace(root_device=torch.device(kind))
        data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0, strategy=strategy)  # type: ignore
        return data.train_dataloader().pin_memory

    assert pinned("cuda") and not pinned("cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_loop_over_experts_waits_for_their_rows(make: Callable[..., Config], device: str) -> None:
    with pytest.raises(DataDependentOutputException):
        step(make({"model.experts": "loop"}), device, bf16=False, padded=False)

"""A pretended GPU, whose tensors compute on the CPU and record their operations.

A tensor on the device ``pretend`` wraps a tensor in main memory. An operation that mixes it with a
tensor in main memory raises, as on a real GPU. The device records every operation that would make
the host wait, with the line that caused it. Such operations read a number, have a result whose
shape depends on values, or copy a tensor back.

    with PretendedGpu() as gpu:
        model = gpu.move(model)
        model.loss(plan.to(gpu.device)).value.backward()
    assert gpu.waits == []

The pretended GPU cannot show races, speed, memory, or kernels that round differently.
"""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import recgrit

PACKAGE = Path(recgrit.__file__).parent
NAME = "pretend"

# Operations whose result is a number of the host, or has a shape that depends on values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::bincount",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Operations that accept a number of the host, but no tensor of the host without dimensions.
STRICT = {"aten::mm", "aten::addmm", "aten::bmm", "aten::cat", "aten::stack", "aten::embedding"}


class MixedDevicesError(RuntimeError):
    """An operation mixes a tensor in main memory with a tensor on the device."""


def _register() -> torch.device:
    with contextlib.suppress(RuntimeError):  # The device can be registered only once per process.
        _setup_privateuseone_for_python_backend(NAME)
    module = getattr(torch, NAME)
    type(module).get_amp_supported_dtype = lambda *_: [torch.bfloat16, torch.float16]
    type(module).is_autocast_enabled = lambda *_: False
    return torch.device(NAME, 0)


class PretendedTensor(Tensor):
    """A tensor on the pretended device. ``inner`` is the tensor in main memory that it wraps."""

    inner: Tensor
    gpu: PretendedGpu
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: PretendedGpu) -> PretendedTensor:
        """Wrap a tensor."""
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=gpu.device,
        )
        wrapped.inner, wrapped.gpu = inner, gpu
        return wrapped

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Return the text of the inner tensor, because reading it needs no copy."""
        return f"on {NAME}: {self.inner!r}"

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Copy numbers of the host to the device, for which the host waits."""
        self.gpu.note("new_tensor")
        options.setdefault("dtype", self.dtype)
        return PretendedTensor(torch.tensor(data, dtype=options["dtype"]), self.gpu)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Run an operation on wrapped tensors by the pretended GPU."""
        (gpu,) = {x.gpu for x in _tensors((args, kwargs)) if isinstance(x, PretendedTensor)}
        return gpu.run(function, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """A context in which tensors can be created on the pretended device and moved to it.

    Wrapped tensors cannot be created in inference mode, so inference mode only turns gradients off
    in this context.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = _register()
        self.waits: list[str] = []
        self.num_operations = 0

    def __enter__(self) -> Self:
        """Register the device as the current pretended GPU."""
        mode = torch.inference_mode
        self._real = mode.__enter__, mode.__exit__

        def enter(inference: Any) -> None:
            inference.no_grad = torch.no_grad()
            inference.no_grad.__enter__()

        mode.__enter__ = enter
        mode.__exit__ = lambda inference, *error: inference.no_grad.__exit__(*error)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Unregister the device."""
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = self._real
        super().__exit__(*error)

    def __repr__(self) -> str:
        """Return a short text for messages of failing tests."""
        return f"{len(self.waits)} waits"

    def move(self, module: nn.Module) -> nn.Module:
        """Move a module's parameters and buffers to the device. Shared tensors stay shared."""
        moved: dict[int, Tensor] = {}

        def put(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                wrapped: Tensor = PretendedTensor(tensor.detach(), self)
                if isinstance(tensor, nn.Parameter):
                    wrapped = nn.Parameter(wrapped, requires_grad=tensor.requires_grad)
                moved[id(tensor)] = wrapped
            return moved[id(tensor)]

        for part in module.modules():
            for table in (part._parameters, part._buffers):
                for name, tensor in table.items():
                    if tensor is not None and not isinstance(tensor, PretendedTensor):
                        table[name] = put(tensor)
            # These are statistics that are not registered as buffers.
            for name in getattr(part, "_records", ()):
                setattr(part, name, put(getattr(part, name)))
        return module

    def note(self, what: str) -> None:
        """Record a wait with the line of the package that caused it."""
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if path.is_relative_to(PACKAGE):
                where = path.relative_to(PACKAGE)
                self.waits.append(f"{where}:{frame.lineno}: {what}: {frame.line}")
                return
        self.waits.append(f"outside the package: {what}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operation that happens inside the context."""
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation in main memory if a GPU could run it."""
        name = function._schema.name
        tensors = _tensors((args, kwargs))
        here = [x for x in tensors if isinstance(x, PretendedTensor)]
        device = kwargs.get("device")
        wanted = None if device is None else torch.device(device)
        if name in ("aten::_to_copy", "aten::copy_"):
            return self._copy(function, args, kwargs, wanted)
        if wanted is not None:
            on_host = {**kwargs, "device": "cpu", "pin_memory": False}
            found = function(*tree_map(_unwrap, args), **tree_map(_unwrap, on_host))
            return self._wrap(found) if wanted.type == NAME else found
        if not here:
            return function(*args, **kwargs)
        self.num_operations += 1
        self._refuse_mixture(name, args, tensors)
        if name in WAITING or _repeats_by_values(name, function, kwargs):
            self.note(name.removeprefix("aten::"))
        if name in INDEXING and any(x.dtype == torch.bool for x in _tensors(args[1])):
            self.note("index by a mask")
        if "sparse" in name or "sampled" in name:
            self.note(f"sparse {name}")
        found = function(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        if name == "aten::_local_scalar_dense":
            return found
        if any(
            r.alias_info is not None and r.alias_info.is_write for r in function._schema.returns
        ):
            known = {id(x.inner): x for x in here}
            return tree_map(lambda x: known.get(id(x), self._wrap(x)), found)
        return self._wrap(found)

    def _copy(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to: torch.device | None
    ) -> Tensor:
        if function._schema.name == "aten::copy_":
            target, source = args[:2]
            if isinstance(source, PretendedTensor) and not isinstance(target, PretendedTensor):
                self.note("copy to the host")
            _unwrap(target).copy_(_unwrap(source))
            return target
        source, to = args[0], to or args[0].device
        options = {name: value for name, value in kwargs.items() if name != "device"}
        found = function(_unwrap(source), **options)
        if to.type == NAME:
            return PretendedTensor(found, self)
        if isinstance(source, PretendedTensor):
            self.note("copy to the host")
        return found

    def _refuse_mixture(self, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        host = [x for x in tensors if not isinstance(x, PretendedTensor)]
        if name in INDEXING and isinstance(args[0], PretendedTensor):
            # An index may be in main memory. It is copied, and the host waits for the copy.
            places = [x for x in _tensors(args[1]) if not isinstance(x, PretendedTensor)]
            for _ in places:
                self.note("index in main memory")
            host = [x for x in host if not any(x is place for place in places)]
        if any(x.ndim > 0 for x in host) or (host and name in STRICT):
            raise MixedDevicesError(f"{name} of tensors in main memory and on the device")

    def _wrap(self, found: Any) -> Any:
        def put(x: Any) -> Any:
            is_host = isinstance(x, Tensor) and not isinstance(x, PretendedTensor)
            return PretendedTensor(x, self) if is_host else x

        return tree_map(put, found)


def _repeats_by_values(name: str, function: Any, kwargs: dict[str, Any]) -> bool:
    is_ragged = name == "aten::repeat_interleave" and function._overloadname == "Tensor"
    return is_ragged and kwargs.get("output_size") is None


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_flatten(values)[0] if isinstance(x, Tensor)]


def _unwrap(x: Any) -> Any:
    return x.inner if isinstance(x, PretendedTensor) else x

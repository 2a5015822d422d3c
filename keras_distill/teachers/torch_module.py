"""A module of PyTorch as a teacher, on any backend of Keras."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_distill.teachers.base import Array, Teacher
from keras_distill.teachers.keras_model import evaluating


class TorchTeacher(Teacher):
    """A `torch.nn.Module`.

    It is called on an array as `module(x)`, on a list or tuple as
    `module(*inputs)` and on a dict as `module(**inputs)`, without gradients
    and in evaluation mode; the modes of its parts are restored afterwards.
    Tensors go to the device of its parameters, and floats have their dtype.
    Channels are where the module has them, first as a rule: where the student
    has them last, `teacher_inputs` moves those of the batch.

    Its fingerprint has the parameters, the buffers and what the module prints
    of itself, not its code.

    Args:
        module: The module.
        layers: Names of submodules, such as `"layer4.1.conv2"`.
        probabilities: Whether the output is probabilities; `None` if unknown.

    Raises:
        ValueError: If there is no submodule of such a name.
    """

    runtime = "torch"

    def __init__(
        self,
        module: Any,
        layers: Sequence[str] = (),
        probabilities: bool | None = None,
    ) -> None:
        self.module = module
        self.layers = tuple(layers)
        self.probabilities = probabilities
        self._parts = {name: _find(module, name) for name in self.layers}
        self._fingerprint = {
            "kind": "torch",
            "name": type(module).__qualname__,
            "sha256": _checksum(module),
        }

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Run the module on a batch."""
        import torch

        with (
            torch.no_grad(),
            evaluating(self.module.modules()),
            _watching(self._parts) as seen,
        ):
            output = self._call(inputs)
        missing = sorted(set(self._parts) - set(seen))
        if missing:
            raise ValueError(
                "The module's forward pass never calls some submodules. "
                f"Received: layers={self.layers}, of which {missing} don't "
                "run. Name those that do."
            )
        return _as_arrays(output), _as_arrays(seen)

    def _call(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            named = {name: self._tensor(x) for name, x in inputs.items()}
            return self.module(**named)
        if isinstance(inputs, (list, tuple)):
            return self.module(*map(self._tensor, inputs))
        return self.module(self._tensor(inputs))

    def _tensor(self, array: Any) -> Any:
        import torch

        # PyTorch warns of memory that it may not write to.
        tensor = torch.as_tensor(np.require(array, requirements="W"))
        parameter = next(self.module.parameters(), None)
        if parameter is None:
            return tensor
        if tensor.is_floating_point() and parameter.is_floating_point():
            tensor = tensor.to(parameter.dtype)
        return tensor.to(parameter.device)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The class's name, and the checksum of structure and weights."""
        return self._fingerprint

    def with_layers(self, layers: Sequence[str]) -> TorchTeacher:
        """The same module, with other submodules to look at."""
        return TorchTeacher(self.module, layers, self.probabilities)


def _find(module: Any, name: str) -> Any:
    parts = dict(module.named_modules())
    if name not in parts:
        close = difflib.get_close_matches(name, parts, n=3, cutoff=0.4)
        hint = f"Did you mean {close}? " if close else ""
        raise ValueError(
            f"There is no submodule '{name}' in the teacher. Received: layer "
            f"name '{name}'. {hint}Its submodules are {sorted(parts)[1:]}."
        )
    return parts[name]


@contextlib.contextmanager
def _watching(parts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    seen: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if name in seen:
                raise ValueError(
                    f"Submodule '{name}' is called more than once in a "
                    "forward pass, so its output is ambiguous. Received: "
                    f"layer name '{name}'. Name one that is called once."
                )
            if not isinstance(output, torch.Tensor):
                raise ValueError(
                    "A hidden layer's output is one tensor. Received: a "
                    f"{type(output).__name__} from submodule '{name}'. Name "
                    "one that returns a tensor."
                )
            # What follows may change it in place, as ReLU(inplace=True).
            seen[name] = output.clone()

        return hook

    with contextlib.ExitStack() as hooks:
        for name, part in parts.items():
            handle = part.register_forward_hook(watch(name))
            hooks.callback(handle.remove)
        yield seen


def _as_arrays(output: Any) -> Any:
    """A module's output in NumPy; what is None in a mapping is left out."""
    import torch

    if isinstance(output, torch.Tensor):
        output = output.detach().cpu()
        # NumPy has no bfloat16.
        is_brain = output.dtype == torch.bfloat16
        return (output.float() if is_brain else output).numpy()
    if isinstance(output, Mapping):
        return {
            name: _as_arrays(value)
            for name, value in output.items()
            if value is not None
        }
    if isinstance(output, (list, tuple)):
        return [_as_arrays(value) for value in output]
    raise TypeError(
        "A teacher returns tensors, in lists, tuples or dicts. Received: a "
        f"{type(output).__name__} from the module. Wrap it in a module that "
        "returns its logits."
    )


def _checksum(module: Any) -> str:
    import torch

    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

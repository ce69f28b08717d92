"""Values that a forward reads while it is traced: a read is a guard.

`if mask.all():` or `pad in ids` turn a tensor into a Python value, and a traced step holds
only what that value led to. Of a value that comes from the batch alone the step therefore
keeps how it was computed, too: `Guard` computes it for another batch, and tells whether the
step holds for that one. A value that depends on a member (its weights, its noise) has no
single answer for all of them, and vmap refuses it.
"""

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from droptune.errors import ModelError
from droptune.trainers.graphs import families_of, is_random, sized_by_values, writes
from droptune.trainers.memory import is_out_of_memory
from droptune.trainers.place import place_of

#: Methods of a tensor that return a Python value, but `in`, which looks for one.
_READS = {
    getattr(Tensor, name)
    for name in (
        "item tolist numpy __array__ __bool__ __int__ __float__ __index__ __complex__"
    ).split()
}


class Reads(TorchFunctionMode):
    """Answers what a traced forward reads, and keeps the tensors that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        if func is Tensor.__contains__:  # it would read within, out of sight
            func, args = Tensor.__bool__, [(args[0] == args[1]).any()]
        read = partial(func, *args, **kwargs or {})
        if func not in _READS or is_batchedtensor(args[0]) or _is_constant(args[0]):
            return read()
        return self._read(args[0], read)

    def _read(self, tensor: Tensor, read: Callable[[], Any]) -> Any:
        if tensor.is_floating_point():
            where = place_of(frame for frame, _ in traceback.walk_stack(None))
            raise ModelError(
                f"the model cannot be trained fused (its forward reads a float from a tensor{where}"
                ", which differs from batch to batch); use trainer='serial'"
            )
        self.tensors.append(tensor.clone())  # as it is now; traced, so that it can be had again
        with disable_proxy_modes_tracing():
            return read()


def _is_constant(tensor: Tensor) -> bool:
    """Tell whether a tensor does not come from what the traced function was given."""
    mode = get_proxy_mode()
    proxy = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return proxy is None or proxy.constant is not None


def guard_of(module: GraphModule, read: Sequence[Tensor]) -> "Guard | None":
    """Return the guard of what was traced, and take what was read from its outputs.

    Args:
        module: what was traced; its outputs end with the tensors that were read.
        read: those tensors, as they were while tracing.

    Returns:
        None where nothing was read and no shape hangs on values.

    Raises:
        ModelError: a value hangs on random numbers; drawn once more, they would differ.
    """
    output = next(node for node in module.graph.nodes if node.op == "output")
    results = output.args[0][: len(output.args[0]) - len(read)]
    values = output.args[0][len(results) :]
    output.args = (results,)
    sized = sized_by_values(module.graph)
    return Guard(module, values, read, sized) if values or sized else None


class Guard:
    """Tells for which inputs a traced function takes the same way.

    Args:
        module: what was traced.
        values: its nodes that were read.
        read: what they were while tracing.
        sized: its nodes whose shapes hang on values.

    Raises:
        ModelError: a value hangs on random numbers; drawn once more, they would differ.
    """

    def __init__(
        self,
        module: GraphModule,
        values: Sequence[Node],
        read: Sequence[Tensor],
        sized: Sequence[Node],
    ) -> None:
        self._values = [tensor.detach().clone() for tensor in read]
        self._shapes = [_shapes(node.meta["val"]) for node in sized]
        wanted = [*values, *sized]
        needed = _needed(module.graph, wanted)
        if any(map(is_random, needed)):
            raise ModelError(
                "the model cannot be trained fused (its forward reads a random number from a "
                "tensor); use trainer='serial'"
            )
        self._module = _only(module, wanted, needed)

    def holds(self, *flat: Tensor) -> bool:
        """Tell whether values and shapes for these inputs are those of the trace."""
        try:
            with torch.no_grad():
                now = self._module(*flat)
        except RuntimeError as error:
            if is_out_of_memory(error) or not self._shapes:
                raise
            return False  # of another shape, a tensor does not fit what comes behind it
        values, sized = now[: len(self._values)], now[len(self._values) :]
        return all(map(torch.equal, values, self._values)) and self._shapes == [
            *map(_shapes, sized)
        ]


def _shapes(value: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tree_leaves(value)]


def _needed(graph: Graph, wanted: Sequence[Node]) -> set[Node]:
    """Return what the wanted nodes come from, and what writes into memory of that."""
    families = families_of(graph)
    needed: set[Node] = set()
    todo = list(wanted)
    while todo:
        while todo:
            node = todo.pop()
            if node not in needed:
                needed.add(node)
                todo += node.all_input_nodes
        todo = [n for n in graph.nodes if n not in needed and writes(n) and families[n] & needed]
    return needed


def _only(module: GraphModule, wanted: Sequence[Node], needed: set[Node]) -> GraphModule:
    """Return a module that computes the wanted nodes alone, from the same inputs."""
    graph, copies = Graph(), {}
    for node in module.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in wanted])
    return GraphModule(module, graph)

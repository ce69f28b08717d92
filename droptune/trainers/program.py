"""Flat programs: a function of tensors, traced once and replayed without its overhead.

Under vmap every operation passes through Python-side batching rules, and autograd records
what it does, at each step anew. For small models that costs more than the arithmetic. A
fused step is therefore traced once for each width and batch shape, forward and backward
together, into a flat list of ATen calls (`make_fx`), from which passes that leave the
values alone remove what is not needed.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from droptune.trainers.graphs import families_of, is_random, shared, writes
from droptune.trainers.hoisting import Parts, Stands, hoist
from droptune.trainers.products import are_fast
from droptune.trainers.reads import Guard, Reads, guard_of

_aten = torch.ops.aten

#: Calls that may return their first argument unchanged.
_SAME = {
    _aten.detach.default,
    _aten.alias.default,
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.expand.default,
    _aten.reshape.default,
}
#: Element-wise calls, and the form that writes into their first argument.
_IN_PLACE = {
    _aten.relu.default: _aten.relu_.default,
    _aten.mul.Tensor: _aten.mul_.Tensor,
    _aten.add.Tensor: _aten.add_.Tensor,
    _aten.div.Tensor: _aten.div_.Tensor,
    _aten.tanh.default: _aten.tanh_.default,
    _aten.sigmoid.default: _aten.sigmoid_.default,
}
#: Calls whose result is new memory that only the graph knows.
_FRESH = {_aten.bmm.default, _aten.baddbmm.default, *_IN_PLACE}
#: Tracing patches torch.fx for the whole process, so only one thread may do it at a time.
_TRACING = threading.Lock()


class Program:
    """A traced function of tensors.

    Args:
        module: what was traced, whose graph is in `parts`.
        parts: what is done once, and what at each call.
        guard: for which inputs; None: for all of the same shapes.
    """

    def __init__(self, module: GraphModule, parts: Parts, guard: Guard | None) -> None:
        self._once, self._each = (
            GraphModule(module, graph).forward for graph in (parts.once, parts.each)
        )
        self._read, self._guard = parts.read, guard
        self.forget()

    def __call__(self, *flat: Tensor) -> list[Tensor]:
        with torch.no_grad():
            versions = [flat[place]._version for place in self._read]
            if versions != self._versions:
                self._still, self._versions = self._once(*flat), versions
            return self._each(*self._still, *flat)

    def forget(self) -> None:
        """Let go of what stood still; to be called where other tensors take its place."""
        self._still: list[Tensor] = []
        self._versions: list[int] | None = None

    def holds(self, *flat: Tensor) -> bool:
        """Tell whether the function would take the same way for these inputs."""
        return self._guard is None or self._guard.holds(*flat)


def trace(
    function: Callable[..., Sequence[Tensor]],
    args: Sequence[Tensor],
    standing: Sequence[Stands] = (),
) -> Program:
    """Trace a function of tensors at the shapes of `args`.

    The function runs once, on `args` themselves: give copies of what it changes in place.
    Python in it runs only now, and what it reads from tensors may differ for other inputs
    (`Program.holds`); random numbers are drawn anew at each replay, from the same generators.

    Args:
        function: takes tensors, returns a sequence of tensors; may call autograd.
        args: examples.
        standing: what stands still of the first of them from call to call, until
            `Program.forget`; nothing of the others.

    Returns:
        A function of tensors of the same shapes, which returns a list and records no graph.

    Raises:
        ModelError: it reads a float or a random number from a tensor.
    """
    # Of each value's shape torch makes a note, with a mode of its own if there is none yet: made
    # anew for each value, that took half of the time.
    notes = TracingContext(FakeTensorMode())
    with _TRACING, tracing(notes), Reads() as reads:
        module = make_fx(lambda *flat: [*function(*flat), *reads.tensors])(*args)
    guard = guard_of(module, reads.tensors)
    simplifications = [_drop_no_ops, _fuse_bias, _straighten_gradients]
    if args and are_fast(args[0].device):
        simplifications.remove(_fuse_bias)  # oneDNN copies the bias first, which takes longer
    for simplify in simplifications:
        simplify(module.graph)
        module.graph.eliminate_dead_code(_is_impure)
    others = [Stands.NOTHING] * (len(args) - len(standing))
    parts = hoist(module.graph, [*standing, *others])
    for graph in (parts.once, parts.each):
        _reuse_memory(graph)
    return Program(module, parts, guard)


def _is_impure(node: Node) -> bool:
    # Draws stay even if unused, so that a replay draws what the function would draw.
    return is_random(node) or node.op in ("placeholder", "output") or writes(node)


def _meta(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    return (
        a is not None
        and b is not None
        and a.shape == b.shape
        and a.dtype == b.dtype
        and a.stride() == b.stride()
    )


def _replace(node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _drop_no_ops(graph: Graph) -> None:
    """Remove views that change nothing, and multiplications by one."""
    families = families_of(graph)
    for node in list(graph.nodes):
        if not node.args or not isinstance(node.args[0], Node):
            continue
        source = node.args[0]
        if not _alike(_meta(node), _meta(source)):
            continue
        if node.target in _SAME:
            _replace(node, source)
        elif node.target is _aten.mul.Scalar and node.args[1] == 1:
            if not _must_differ(families[source], families[node]):
                family = families[source] | families[node]
                families.update(dict.fromkeys(family, family))
                _replace(node, source)


def _must_differ(one: set[Node], other: set[Node]) -> bool:
    """Tell whether it would be seen if a copy (`other`) shared memory with its source."""
    readers, copy_readers = ([user for m in family for user in m.users] for family in (one, other))
    given = any(member.op != "call_function" for member in one)
    handed_out = any(user.op == "output" for user in copy_readers)
    also_source = any(user.op == "output" for user in readers)
    written = any(map(writes, [*readers, *copy_readers]))
    return written or (handed_out and (given or also_source))


def _fuse_bias(graph: Graph) -> None:
    """Turn `bias + bmm(a, b)` into one `baddbmm`, which adds while it writes."""
    for node in list(graph.nodes):
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        bias, product = node.args
        if not _is_bmm(product):
            bias, product = product, bias
        if not _is_bmm(product) or not _can_move(product, node) or _meta(bias) is None:
            continue
        same_type = _meta(bias).dtype == _meta(product).dtype
        if same_type and _meta(bias).dim() == 3 and _alike(_meta(node), _meta(product)):
            with graph.inserting_before(node):
                fused = graph.call_function(_aten.baddbmm.default, (bias, *product.args))
            fused.meta = dict(node.meta)
            _replace(node, fused)


def _is_bmm(node: Any) -> bool:
    return isinstance(node, Node) and node.target is _aten.bmm.default


def _can_move(node: Node, user: Node) -> bool:
    """Tell whether a call may be made as late as its user, which must be its only one."""
    if len(node.users) > 1:
        return False
    between = node.next
    while between is not user and not writes(between):
        between = between.next
    return between is user


def _straighten_gradients(graph: Graph) -> None:
    """Turn `transpose(bmm(a, b))` into `bmm(transpose(b), transpose(a))`.

    The gradient of a weight is then contiguous, and an optimiser need not copy it.
    """
    families = families_of(graph)
    for node in list(graph.nodes):
        if node.target is not _aten.transpose.int or tuple(node.args[1:]) not in ((1, 2), (2, 1)):
            continue
        product = node.args[0]
        if not _is_bmm(product) or not _can_move(product, node):
            continue
        if any(member.target is _aten.as_strided.default for member in families[node]):
            continue  # it reads memory by its strides, which would change
        with graph.inserting_before(node):
            left, right = (_transposed(graph, side) for side in reversed(product.args))
            straight = graph.call_function(_aten.bmm.default, (left, right))
        straight.meta = {"val": _meta(node).contiguous()} if _meta(node) is not None else {}
        _replace(node, straight)


def _transposed(graph: Graph, node: Node) -> Node:
    if node.target is _aten.transpose.int and tuple(node.args[1:]) in ((1, 2), (2, 1)):
        return node.args[0]
    turned = graph.call_function(_aten.transpose.int, (node, 1, 2))
    if _meta(node) is not None:
        turned.meta = {"val": _meta(node).transpose(1, 2)}
    return turned


def _reuse_memory(graph: Graph) -> None:
    """Let element-wise calls write into their first argument where nothing reads it later."""
    _put_first(graph)
    order = {node: place for place, node in enumerate(graph.nodes)}
    families = families_of(graph)
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if node.target not in (*_IN_PLACE, _aten.threshold_backward.default):
            continue
        if not isinstance(source, Node) or not _alike(_meta(node), _meta(source)):
            continue
        family = families[source]
        if not all(shared(member) or member.target in _FRESH for member in family):
            continue
        if not _reads_last(node, family, order):
            continue
        if node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        else:
            node.target = _aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": source}


def _put_first(graph: Graph) -> None:
    """Name a product first in a sum of its shape, so that the sum can be written over it."""
    for node in graph.nodes:
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        one, other = node.args
        if _is_bmm(other) and not _is_bmm(one) and _alike(_meta(node), _meta(other)):
            node.args = other, one


def _reads_last(node: Node, family: set[Node], order: dict[Node, int]) -> bool:
    """Tell whether a call is the last to read memory, and as its first argument alone."""
    others: list[Node] = []
    torch.fx.map_arg((node.args[1:], node.kwargs), others.append)
    later = (order[user] > order[node] for member in family for user in member.users)
    return not any(later) and family.isdisjoint(others)

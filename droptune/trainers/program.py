"""Flat programs: a function of tensors, traced once and replayed without its overhead.

Under vmap every operation passes through Python-side batching rules, and autograd records
what it does, at each step anew. For small models that costs more than the arithmetic. A
fused step is therefore traced once for each width and batch shape, forward and backward
together, into a flat list of ATen calls (`make_fx`), from which passes that leave the
values alone remove what is not needed.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

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
#: Calls that return a view of their first argument.
_VIEWS = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.expand.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.detach.default,
    _aten.alias.default,
    _aten.t.default,
    _aten.split.Tensor,
    _aten.unbind.int,
    operator.getitem,
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
_FRESH = {_aten.bmm.default, _aten.baddbmm.default, *_IN_PLACE, *_IN_PLACE.values()}


def trace(function: Callable[..., Sequence[Tensor]], args: Sequence[Tensor]) -> Callable[..., list]:
    """Trace a function of tensors at the shapes of `args`.

    The function runs once, on `args` themselves: give copies of what it changes in place.
    Python in it runs only now; random numbers are drawn anew at each replay, from the same
    generators.

    Args:
        function: takes tensors, returns a sequence of tensors; may call autograd.
        args: examples.

    Returns:
        A function of tensors of the same shapes, which returns a list and records no graph.
    """
    module = make_fx(lambda *flat: list(function(*flat)))(*args)
    for simplify in (_drop_no_ops, _fuse_bias, _straighten_gradients, _reuse_memory):
        simplify(module.graph)
        module.graph.eliminate_dead_code(_is_impure)
    module.recompile()
    forward = module.forward

    def replay(*flat: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return forward(*flat)

    return replay


def _is_impure(node: Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    # Draws stay even if unused, so that a replay draws what the function would draw.
    return random or (schema is not None and schema.is_mutable)


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
    for node in list(graph.nodes):
        if not node.args or not isinstance(node.args[0], Node):
            continue
        same = node.target in _SAME and _alike(_meta(node), _meta(node.args[0]))
        by_one = node.target is _aten.mul.Scalar and node.args[1] == 1
        if same or by_one:
            _replace(node, node.args[0])


def _fuse_bias(graph: Graph) -> None:
    """Turn `bias + bmm(a, b)` into one `baddbmm`, which adds while it writes."""
    for node in list(graph.nodes):
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        bias, product = node.args
        if not _is_bmm(product):
            bias, product = product, bias
        if not _is_bmm(product) or len(product.users) > 1 or _meta(bias) is None:
            continue
        if _meta(bias).dim() == 3 and _alike(_meta(node), _meta(product)):
            with graph.inserting_before(node):
                fused = graph.call_function(_aten.baddbmm.default, (bias, *product.args))
            fused.meta = dict(node.meta)
            _replace(node, fused)


def _is_bmm(node: Any) -> bool:
    return isinstance(node, Node) and node.target is _aten.bmm.default


def _straighten_gradients(graph: Graph) -> None:
    """Turn `transpose(bmm(a, b))` into `bmm(transpose(b), transpose(a))`.

    The gradient of a weight is then contiguous, and an optimiser need not copy it.
    """
    for node in list(graph.nodes):
        if node.target is not _aten.transpose.int or tuple(node.args[1:]) not in ((1, 2), (2, 1)):
            continue
        product = node.args[0]
        if not _is_bmm(product) or len(product.users) > 1:
            continue
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
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        written = node.target in _IN_PLACE or node.target is _aten.threshold_backward.default
        source = node.args[0] if node.args else None
        if not written or not isinstance(source, Node) or source.target not in _FRESH:
            continue
        if not _alike(_meta(node), _meta(source)) or source in node.args[1:]:
            continue
        if _last_use(source, order, besides=node) > order[node]:
            continue
        if node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        else:
            node.target = _aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": source}


def _last_use(node: Node, order: dict[Node, int], besides: Node | None = None) -> int:
    """Return where a tensor, or any view or in-place result of it, is last read."""
    last = -1
    for user in node.users:
        if user is besides:
            continue
        last = max(last, order[user])
        schema = getattr(user.target, "_schema", None)
        if user.target in _VIEWS or (schema is not None and schema.is_mutable):
            last = max(last, _last_use(user, order))
    return last

"""Facts about a traced graph: what draws, what writes, which nodes may share memory."""

import operator

import torch
from torch.fx import Graph, Node

_aten = torch.ops.aten

#: Calls whose result shares memory with their first argument although their schema is silent.
_SHARING = {
    _aten._unsafe_view.default,
    _aten.unsafe_split.Tensor,
    _aten.unsafe_split_with_sizes.default,
    operator.getitem,
}


def is_random(node: Node) -> bool:
    """Tell whether a node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def sized_by_values(graph: Graph) -> list[Node]:
    """Return nodes whose shapes hang on values, and which tell all such shapes of a graph.

    `x[mask]` stands for itself with an empty `x`: its shape hangs on the mask alone.
    """
    found = []
    for node in list(graph.nodes):
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if node.target is _aten.index.Tensor:
            if not any(map(_is_mask, node.args[1])):
                continue
            x = node.args[0].meta["val"]
            with graph.inserting_before(node):
                empty = graph.call_function(
                    _aten.empty.memory_format, (list(x.shape),), {"device": x.device}
                )
                stand_in = graph.call_function(node.target, (empty, node.args[1]))
            stand_in.meta = dict(node.meta)
            node = stand_in
        found.append(node)
    return found


def _is_mask(index: Node | None) -> bool:
    return index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8)


def writes(node: Node) -> bool:
    """Tell whether a node changes memory that it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def shared(node: Node) -> list[Node]:
    """Return the arguments that a call's result may share memory with."""
    if node.target in _SHARING:
        return [node.args[0]]
    schema = getattr(node.target, "_schema", None)
    found: list[Node] = []
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None:
            torch.fx.map_arg(value, found.append)
    return found


def families_of(graph: Graph) -> dict[Node, set[Node]]:
    """Return node -> all nodes whose values may share memory with its own."""
    families: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        family = {node}.union(*(families[source] for source in shared(node)))
        families.update(dict.fromkeys(family, family))
    return families

"""What of a traced graph stands still from call to call, and is computed once.

Weights are the same tensors at every step, and rates keep their values for an epoch: views of
the ones and what follows from the others need not be computed anew for each batch. Compilers
call it loop-invariant code motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch.fx import Graph, Node

from droptune.trainers.graphs import families_of, is_random, writes

_aten = torch.ops.aten

#: Calls that always return a view of their first argument, and read nothing of it.
_VIEWS = {
    _aten.alias.default,
    _aten.as_strided.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.permute.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.squeeze.dim,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten.view.dtype,
}


class Stands(IntEnum):
    """What of an argument, or of a value in a graph, is the same at the next call.

    `NOTHING`: another tensor comes. `MEMORY`: it is the same tensor, whose values change.
    `VALUE`: it is the same tensor, and so are its values, unless somebody writes into it
    between calls, which its version tells.
    """

    NOTHING = 0
    MEMORY = 1
    VALUE = 2


@dataclass
class Parts:
    """A graph in two parts.

    Attributes:
        once: takes the graph's arguments, returns what stands still.
        each: takes what `once` returns and then the graph's arguments, returns its results.
        read: positions of the arguments whose values `once` read.
    """

    once: Graph
    each: Graph
    read: list[int]


def hoist(graph: Graph, arguments: Sequence[Stands]) -> Parts:
    """Take out of a graph what need not be computed at each call.

    Args:
        graph: of ATen calls, at fixed shapes.
        arguments: what stands still of each.
    """
    found = _standing(graph, arguments)
    calls = [node for node in graph.nodes if node.op == "call_function" and found[node]]
    moving = [n for n in graph.nodes if n.op == "output" or not found[n]]
    kept = [n for n in calls if any(user in moving for user in n.users)]
    given = [node for node in graph.nodes if node.op == "placeholder"]
    read = [
        place
        for place, node in enumerate(given)
        if found[node] is Stands.VALUE and any(user in calls for user in node.users)
    ]
    return Parts(_once(graph, set(calls), kept), _each(graph, set(calls), kept), read)


def _standing(graph: Graph, arguments: Sequence[Stands]) -> dict[Node, Stands]:
    """Return node -> what stands still of its value.

    Memory into which a call writes at each step stands still in no other way than as memory.
    What is found first may rest on a value that such a call changes, so it is found again
    until nothing is new.
    """
    families = families_of(graph)
    writers = [node for node in graph.nodes if writes(node)]
    # Into what was given nothing is written but at each call; and what is handed out belongs to
    # the caller, who may write into it.
    owned = [n for n in writers if any(m.op != "call_function" for m in families[n])]
    owned += next(node for node in graph.nodes if node.op == "output").all_input_nodes
    written = {member for node in owned for member in families[node]}
    order = {node: place for place, node in enumerate(graph.nodes)}
    while True:
        found = _found(graph, arguments, written)
        moved = (
            node
            for node in writers
            if not found[node] or _is_read_before(node, families[node], found, order)
        )
        new = written.union(*(families[node] for node in moved))
        if new == written:
            return found
        written = new


def _is_read_before(
    writer: Node, family: set[Node], found: dict[Node, Stands], order: dict[Node, int]
) -> bool:
    """Tell whether a call at each step wants what was there before a writer."""
    users = (user for member in family for user in member.users)
    return any(not found[user] and order[user] < order[writer] for user in users)


def _found(graph: Graph, arguments: Sequence[Stands], written: set[Node]) -> dict[Node, Stands]:
    found: dict[Node, Stands] = {}
    given = iter(arguments)
    for node in graph.nodes:
        if node.op == "placeholder":
            found[node] = next(given)
            if node in written:
                found[node] = min(found[node], Stands.MEMORY)
        elif node.op == "get_attr":  # a generator, or a tensor that a model keeps as it likes
            found[node] = Stands.MEMORY
        else:
            found[node] = _of_call(node, found, written)
    return found


def _of_call(node: Node, found: dict[Node, Stands], written: set[Node]) -> Stands:
    if node.op == "output" or is_random(node):
        return Stands.NOTHING
    sources = {found[source] for source in node.all_input_nodes}
    if node.target in _VIEWS:
        return min(sources)
    fixed = sources <= {Stands.VALUE} and node not in written
    return Stands.VALUE if fixed else Stands.NOTHING


def _once(graph: Graph, calls: set[Node], kept: Sequence[Node]) -> Graph:
    once, copies = Graph(), {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or node in calls:
            copies[node] = once.node_copy(node, copies.__getitem__)
    once.output([copies[node] for node in kept])
    return once


def _each(graph: Graph, calls: set[Node], kept: Sequence[Node]) -> Graph:
    each, copies = Graph(), {}
    for place, node in enumerate(kept):
        copies[node] = each.placeholder(f"still_{place}")
        copies[node].meta = dict(node.meta)
    for node in graph.nodes:
        if node not in calls:
            copies[node] = each.node_copy(node, copies.__getitem__)
    return each

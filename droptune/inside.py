"""Places inside torch's layers where dropout can act, and which no module or call shows.

`PATH@between` is the dropout between the layers of an `nn.LSTM`, `nn.GRU` or `nn.RNN`, the one
that torch has; `PATH@state` the hidden state and `PATH@cell` the memory cell on their way from
step to step; `PATH@weights` the hidden-to-hidden matrices. `PATH@rows` are the rows of an
`nn.Embedding`, one for each word type.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from droptune.recurrent import is_recurrent, time_major

_NAME = re.compile(r"(.*)@(between|state|cell|weights|rows)")


@dataclass(frozen=True)
class Place:
    """A place inside a layer; its attributes are those of a `Site`."""

    layout: str
    shape: tuple[int, ...]
    kind: str | None = None
    rate: float | None = None
    calls: int = 1


def split(name: str) -> tuple[str, str] | None:
    """Return path and place of a site's name, such as "rnn@state"; None for others."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def places(module: nn.Module, given: Sequence[int] = ()) -> dict[str, Place]:
    """Return the places inside a layer, by name, in the order in which they act.

    Args:
        module: any; most have none.
        given: the shape of the layer's input, as far as it is known.
    """
    embeds = isinstance(module, nn.Embedding)
    if embeds and type(module).forward is nn.Embedding.forward:  # others may look up other rows
        return {"rows": Place("VF", (module.num_embeddings, module.embedding_dim))}
    if not is_recurrent(module):
        return {}
    steps = tuple(given[:1] if time_major(module) or len(given) < 3 else given[1:2])
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    state = module.proj_size or module.hidden_size
    matrices = module.num_layers * (1 + module.bidirectional)
    found = {
        "weights": Place("GS", (gates * module.hidden_size, state), calls=matrices),
        "state": Place("NLS", (*steps, state)),
    }
    if module.mode == "LSTM":
        found["cell"] = Place("NLM", (*steps, module.hidden_size))
    if module.num_layers > 1:
        rate = float(module.dropout) or None
        shape = (*steps, state * (1 + module.bidirectional))
        kind = "standard" if rate else None
        found["between"] = Place("NLF", shape, kind, rate, module.num_layers - 1)
    return found

"""Torch's recurrent layers, step by step.

`nn.LSTM`, `nn.GRU` and `nn.RNN` run as one kernel, which `torch.vmap` cannot map and inside
which no dropout of ours can act. `forward` computes the same from the same parameters one step
at a time. `Stepped` stands in a layer's own `forward` while a plan is on, and takes the steps
only where they are needed: dropout is on inside the layer, or it is mapped.

Below sites, which lists the places inside these layers, and install, which puts dropout there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from droptune.errors import ModelError
from droptune.kinds import Kind, Zoneout

#: The state of a layer between two steps: hidden state, and the cell's where there is one.
State = tuple[Tensor, ...]
#: What a step computes: (input's part, hidden state's part, state before) -> state after.
Step = Callable[[Tensor, Tensor, State], State]


class Dropout(Protocol):
    """What acts at a place inside a layer: kinds, one after the other."""

    entry: Any

    @property
    def kinds(self) -> Mapping[str, Kind]: ...

    def __call__(self, x: Tensor) -> Tensor: ...


def is_recurrent(module: nn.Module) -> bool:
    """Tell whether a module's forward is that of `nn.LSTM`, `nn.GRU` or `nn.RNN`."""
    forward = vars(module).get("forward")
    if forward is not None and not isinstance(forward, Stepped):
        return False  # somebody put another one over it
    return type(module).forward in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)


def time_major(module: nn.Module) -> bool:
    """Tell whether a layer takes sequences as (L, N, F): recurrent ones do by default."""
    return isinstance(module, nn.RNNBase) and not module.batch_first


# One step


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber, with forget gates; gates in the order of `nn.LSTM`."""
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    """Cho et al., https://arxiv.org/abs/1406.1078, in the form of `nn.GRU`."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + (xz + hz).sigmoid() * (state[0] - n),)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


_STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}


# Many steps


@dataclass
class _Noise:
    """What acts on the states of one layer, in one direction, in one forward.

    Attributes:
        reads: factors of the hidden state where the gates read it, (N, S).
        zones: for each state the shares of its update that take place; each (L, N, S).
    """

    reads: list[Tensor] = field(default_factory=list)
    zones: list[list[Tensor]] = field(default_factory=list)


def _noise(sites: Mapping[str, Dropout], state: State, steps: int) -> _Noise:
    """Draw the noise for all steps at once; in eval mode only zoneout is not the identity."""
    noise = _Noise()
    for name, part in zip(("state", "cell"), state, strict=False):
        noise.zones.append([])
        for kind in sites[name].kinds.values() if name in sites else ():
            if isinstance(kind, Zoneout):
                ones = part.new_ones(part.shape[0], steps, part.shape[1])
                noise.zones[-1].append(kind(ones).transpose(0, 1))
            elif kind.training:  # one mask for all steps
                noise.reads.append(kind(part.new_ones(part.shape[0], 1, part.shape[1])).squeeze(1))
    return noise


def _direction(
    module: nn.RNNBase,
    index: int,
    x: Tensor,
    state: State,
    sites: Mapping[str, Dropout],
    valid: Sequence[Tensor] | None,
) -> tuple[Tensor, State]:
    """Run one layer in one direction.

    Args:
        module: whose parameters these are.
        index: of the layer's direction among all: the odd ones of a bidirectional module run
            backwards.
        x: the layer's input, (L, N, F).
        state: before the first step, each (N, S).
        sites: the dropout inside the module.
        valid: for each step which samples have it, (N, 1); None: all.

    Returns:
        The hidden states (L, N, S), and the state after the last step.
    """
    w_in, w_hidden, *rest = module.all_weights[index]
    projection = rest.pop() if module.proj_size else None
    b_in, b_hidden = rest or (None, None)
    if module.mode != "GRU" and b_in is not None:  # elsewhere both are added to the same
        b_in, b_hidden = b_in + b_hidden, None
    if "weights" in sites:
        w_hidden = sites["weights"](w_hidden)
    step, noise = _STEPS[module.mode], _noise(sites, state, len(x))
    zones = [[zone.unbind() for zone in of_one] for of_one in noise.zones]
    # Flat: with more axes, vmap would copy the weights for each step.
    inputs = F.linear(x.flatten(0, 1), w_in, b_in).unflatten(0, x.shape[:2]).unbind()
    outputs: dict[int, Tensor] = {}
    backwards = module.bidirectional and index % 2
    for t in reversed(range(len(inputs))) if backwards else range(len(inputs)):
        read = state[0]
        for factor in noise.reads:
            read = read * factor
        new = step(inputs[t], F.linear(read, w_hidden, b_hidden), state)
        if projection is not None:
            new = (F.linear(new[0], projection), *new[1:])
        for i, shares in enumerate(zones):
            for share in shares:  # at a share of 1 exactly the new state
                new = (*new[:i], torch.lerp(state[i], new[i], share[t]), *new[i + 1 :])
        if valid is not None:
            new = tuple(torch.where(valid[t], n, o) for n, o in zip(new, state, strict=True))
        outputs[t], state = new[0], new
    return torch.stack([outputs[t] for t in range(len(inputs))]), state


def _layers(
    module: nn.RNNBase,
    x: Tensor,
    states: State,
    sites: Mapping[str, Dropout],
    valid: Sequence[Tensor] | None = None,
) -> tuple[Tensor, State]:
    """Run all layers on (L, N, F); states are those of all layers and directions."""
    directions, ends = 1 + module.bidirectional, []
    for layer in range(module.num_layers):
        if layer and "between" in sites:
            x = sites["between"](x.transpose(0, 1)).transpose(0, 1)
        outputs = []
        for index in range(layer * directions, (layer + 1) * directions):
            start = tuple(state[index] for state in states)
            output, end = _direction(module, index, x, start, sites, valid)
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, -1) if module.bidirectional else outputs[0]
    return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _start(module: nn.RNNBase, x: Tensor, hx: Any, samples: int) -> State:
    """Return the states to begin with, those given or zeros, each (layers, N, S)."""
    if hx is not None:
        return hx if module.mode == "LSTM" else (hx,)
    count = module.num_layers * (1 + module.bidirectional)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    return tuple(x.new_zeros(count, samples, s) for s in sizes[: 1 + (module.mode == "LSTM")])


def _ended(module: nn.RNNBase, states: State) -> Any:
    return states if module.mode == "LSTM" else states[0]


def forward(module: nn.RNNBase, x: Any, hx: Any = None, sites: Mapping[str, Dropout] = {}) -> Any:  # noqa: B006
    """Return what the module's own forward returns, with dropout inside, step by step.

    Args:
        module: an `nn.LSTM`, `nn.GRU` or `nn.RNN`; its own `dropout` does not act.
        x: as its forward takes it, a `PackedSequence` too.
        hx: states to begin with, or None.
        sites: "between", "state", "cell", "weights" -> what acts there.

    Raises:
        RuntimeError: shapes do not go together, as torch says it.
        ValueError: the input has neither two axes nor three, as torch says it.
    """
    if isinstance(x, PackedSequence):
        return _on_packed(module, x, hx, sites)
    if x.dim() not in (2, 3):
        raise ValueError(f"{module.mode}: Expected input to be 2D or 3D, got {x.dim()}D instead")
    sample = 0 if module.batch_first else 1
    single = x.dim() == 2
    if single:
        x = x.unsqueeze(sample)
        if hx is not None:
            hx = _ended(module, tuple(h.unsqueeze(1) for h in _start(module, x, hx, 1)))
    states = _start(module, x, hx, x.shape[sample])
    module.check_forward_args(x, _ended(module, states), None)
    output, states = _layers(module, x.transpose(0, 1) if sample == 0 else x, states, sites)
    output = output.transpose(0, 1) if sample == 0 else output
    if single:
        output, states = output.squeeze(sample), tuple(state.squeeze(1) for state in states)
    return output, _ended(module, states)


def _on_packed(module: nn.RNNBase, x: PackedSequence, hx: Any, sites: Mapping) -> Any:
    """Run on a packed sequence: padded, with the state of a sample held where it has no step."""
    padded, lengths = pad_packed_sequence(PackedSequence(x.data, x.batch_sizes))
    states = _start(module, padded, hx, padded.shape[1])
    if hx is not None and x.sorted_indices is not None:
        states = tuple(state.index_select(1, x.sorted_indices) for state in states)
    module.check_forward_args(x.data, _ended(module, states), x.batch_sizes)
    steps = torch.arange(len(padded), device=padded.device)[:, None, None]
    valid = (steps < lengths.to(padded.device)[:, None]).unbind()
    output, states = _layers(module, padded, states, sites, valid)
    if x.unsorted_indices is not None:
        states = tuple(state.index_select(1, x.unsorted_indices) for state in states)
    packed = pack_padded_sequence(output, lengths).data
    return x._replace(data=packed), _ended(module, states)


# In a layer's place


class Stepped:
    """A recurrent layer's forward while a plan is on: torch's own, or step by step.

    Step by step where dropout is on inside the layer, and under `torch.func`, whose `vmap` knows
    no rule for torch's own. Elsewhere torch's kernel runs, which is faster: with all dropout
    off, and in eval mode, unless zoneout is on, which acts there too.

    It stands in the module's `forward`, and holds no function made at run time, so that the
    model can be pickled and deep-copied.

    Args:
        module: where it stands; `is_recurrent`.
        sites: name of the place, such as "state" -> what acts there.
    """

    def __init__(self, module: nn.RNNBase, sites: Mapping[str, Dropout]) -> None:
        self.module, self.sites = module, dict(sites)

    def __call__(self, input: Any, hx: Any = None) -> Any:
        mapped = torch._C._functorch.maybe_current_level() is not None
        if mapped and isinstance(input, PackedSequence):
            raise ModelError(
                f"the model cannot be trained fused (its {type(self.module).__name__} is given a "
                "PackedSequence, whose lengths are data); use trainer='serial'"
            )
        if mapped or self._acts():
            return forward(self.module, input, hx, self.sites)
        return type(self.module).forward(self.module, input, hx)

    def _acts(self) -> bool:
        entries = [site.entry for site in self.sites.values() if site.entry is not None]
        return any(self.module.training or entry.kind == Zoneout.name for entry in entries)


def watch(module: nn.RNNBase, sites: Mapping[str, Dropout]) -> None:
    """Let dropout act inside a recurrent layer, until `let_go`."""
    module.forward = Stepped(module, sites)


def watched(module: nn.Module) -> bool:
    """Tell whether the forward that stands in a module is ours."""
    return isinstance(vars(module).get("forward"), Stepped)


def let_go(module: nn.Module) -> None:
    """Give a module its own forward back."""
    if watched(module):
        del module.forward

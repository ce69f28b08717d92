"""Torch's recurrent layers, step by step.

`nn.LSTM`, `nn.GRU` and `nn.RNN` run as one kernel, which `torch.vmap` cannot map and inside
which no dropout of ours can act. `forward` computes the same from the same parameters one step
at a time. `Stepped` stands in a layer's own `forward` while a plan is on, and takes the steps
only where they are needed: dropout acts from one to the next, or the layer is mapped.

Below sites, which lists the places inside these layers, and install, which puts dropout there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """What acts at a place inside a layer: kinds, one after the other, or a mask for them."""

    entry: Any
    mask: Tensor | None

    def acting(self) -> Iterable[Kind]: ...

    def run(self, kind: Kind, x: Tensor) -> Tensor: ...

    def matrix(self, x: Tensor, index: int) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor: ...


def is_recurrent(module: nn.Module) -> bool:
    """Tell whether a module's forward is that of `nn.LSTM`, `nn.GRU` or `nn.RNN`."""
    if not isinstance(module, nn.RNNBase):
        return False
    forward = vars(module).get("forward")
    forward = getattr(forward, "before", forward)  # behind one that is ours, too
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
_KERNELS: dict[str, Callable] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


# Many steps


@dataclass(frozen=True)
class _Run:
    """What one forward of a module goes by.

    Attributes:
        module: whose parameters are used.
        sites: the dropout inside it.
        valid: which samples have a step, (L, N, 1); None: all have all.
        fast: whether torch's kernel runs a layer in which nothing acts from step to step.
    """

    module: nn.RNNBase
    sites: Mapping[str, Dropout]
    valid: Tensor | None
    fast: bool


@dataclass
class _Noise:
    """What acts on the states of one layer, in one direction, in one forward.

    Attributes:
        reads: factors of the hidden state where the gates read it, (N, S).
        zones: for each state the shares of its update that take place; for each step (N, S).
    """

    reads: list[Tensor] = field(default_factory=list)
    zones: list[list[Sequence[Tensor]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reads) or any(self.zones)


def _noise(sites: Mapping[str, Dropout], state: State, steps: int) -> _Noise:
    """Draw the noise for all steps at once; in eval mode only zoneout is not the identity."""
    noise = _Noise()
    for name, part in zip(("state", "cell"), state, strict=False):
        noise.zones.append([])
        for kind in sites[name].acting() if name in sites else ():
            if isinstance(kind, Zoneout):
                ones = part.new_ones(part.shape[0], steps, part.shape[1])
                noise.zones[-1].append(sites[name].run(kind, ones).unbind(1))
            elif kind.training:  # one mask for all steps
                ones = part.new_ones(part.shape[0], 1, part.shape[1])
                noise.reads.append(sites[name].run(kind, ones).squeeze(1))
    return noise


def _by_steps(
    run: _Run, weights: Sequence[Tensor], x: Tensor, state: State, noise: _Noise
) -> tuple[Tensor, State]:
    """Run one layer, in the order of its steps; arguments and result as in `_by_kernel`."""
    w_in, w_hidden, *rest = weights
    projection = rest.pop() if run.module.proj_size else None
    b_in, b_hidden = rest or (None, None)
    if run.module.mode != "GRU" and b_in is not None:  # elsewhere both are added to the same
        b_in, b_hidden = b_in + b_hidden, None
    step, outputs = _STEPS[run.module.mode], []
    # Flat: with more axes, vmap would copy the weights for each step.
    inputs = F.linear(x.flatten(0, 1), w_in, b_in).unflatten(0, x.shape[:2])
    for t, given in enumerate(inputs.unbind()):
        read = state[0]
        for factor in noise.reads:
            read = read * factor
        new = step(given, F.linear(read, w_hidden, b_hidden), state)
        if projection is not None:
            new = (F.linear(new[0], projection), *new[1:])
        for i, zones in enumerate(noise.zones):
            for zone in zones:  # at a share of 1 exactly the new state
                now = new[i]  # of another type than at the start, under autocast
                now = torch.lerp(state[i].to(now.dtype), now, zone[t].to(now.dtype))
                new = (*new[:i], now, *new[i + 1 :])
        if run.valid is not None:
            valid = run.valid[t]
            new = tuple(torch.where(valid, n, o) for n, o in zip(new, state, strict=True))
        outputs.append(new[0])
        state = new
    return torch.stack(outputs), state


def _by_kernel(
    run: _Run, weights: Sequence[Tensor], x: Tensor, state: State
) -> tuple[Tensor, State]:
    """Run one layer as torch does, with weights of our own.

    Args:
        run: what the forward goes by.
        weights: of the layer, in torch's order.
        x: the layer's input, (L, N, F).
        state: before the first step, each (N, S).

    Returns:
        The hidden states (L, N, S), and the state after the last step.
    """
    start = tuple(part[None] for part in state)
    hx: Any = start if run.module.mode == "LSTM" else start[0]
    options = (run.module.bias, 1, 0.0, run.module.training, False, False)
    output, *end = _KERNELS[run.module.mode](x, hx, weights, *options)
    return output, tuple(part[0] for part in end)


def _direction(run: _Run, index: int, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Run one layer in one direction: of all those of a bidirectional module the odd ones go
    backwards; the rest as in `_by_kernel`.
    """
    w_in, w_hidden, *rest = run.module.all_weights[index]
    if "weights" in run.sites:
        w_hidden = run.sites["weights"].matrix(w_hidden, index)
    weights, noise = [w_in, w_hidden, *rest], _noise(run.sites, state, len(x))
    backwards = run.module.bidirectional and index % 2
    if backwards:
        x = x.flip(0)
        run = run if run.valid is None else replace(run, valid=run.valid.flip(0))
    if run.fast and not noise:
        output, state = _by_kernel(run, weights, x, state)
    else:
        output, state = _by_steps(run, weights, x, state, noise)
    return output.flip(0) if backwards else output, state


def _layers(run: _Run, x: Tensor, states: State) -> tuple[Tensor, State]:
    """Run all layers on (L, N, F); states are those of all layers and directions."""
    directions, ends = 1 + run.module.bidirectional, []
    for layer in range(run.module.num_layers):
        if layer and "between" in run.sites:
            x = run.sites["between"](x.transpose(0, 1)).transpose(0, 1)
        outputs = []
        for index in range(layer * directions, (layer + 1) * directions):
            output, end = _direction(run, index, x, tuple(state[index] for state in states))
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, -1) if run.module.bidirectional else outputs[0]
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


def forward(
    module: nn.RNNBase,
    x: Any,
    hx: Any = None,
    sites: Mapping[str, Dropout] = {},  # noqa: B006
    fast: bool = False,
) -> Any:
    """Return what the module's own forward returns, with dropout inside.

    Args:
        module: an `nn.LSTM`, `nn.GRU` or `nn.RNN`; its own `dropout` does not act.
        x: as its forward takes it, a `PackedSequence` too.
        hx: states to begin with, or None.
        sites: "between", "state", "cell", "weights" -> what acts there.
        fast: whether torch's kernel, which `torch.func` cannot map, runs the layers in which
            nothing acts from step to step. Packed sequences go step by step all the same.

    Raises:
        RuntimeError: shapes do not go together, as torch says it.
        ValueError: the input has neither two axes nor three, as torch says it.
    """
    if isinstance(x, PackedSequence):
        return _on_packed(module, x, hx, sites)
    run = _Run(module, sites, None, fast)
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
    output, states = _layers(run, x.transpose(0, 1) if sample == 0 else x, states)
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
    valid = steps < lengths.to(padded.device)[:, None]
    output, states = _layers(_Run(module, sites, valid, False), padded, states)
    if x.unsorted_indices is not None:
        states = tuple(state.index_select(1, x.unsorted_indices) for state in states)
    packed = pack_padded_sequence(output, lengths).data
    return x._replace(data=packed), _ended(module, states)


# In a layer's place


class Stepped:
    """A recurrent layer's forward while a plan is on: torch's own, or step by step.

    Step by step where dropout acts from step to step, and under `torch.func`, whose `vmap` knows
    no rule for torch's own. Elsewhere torch's kernel runs, which is faster: layer by layer with
    dropout between layers or of weights, and as a whole with all of it off and in eval mode,
    unless zoneout is on, which acts there too.

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
        if mapped:
            return forward(self.module, input, hx, self.sites)
        if acting := {name: site for name, site in self.sites.items() if self._acts(site)}:
            return forward(self.module, input, hx, acting, fast=True)
        return type(self.module).forward(self.module, input, hx)

    def _acts(self, site: Dropout) -> bool:
        if site.entry is None:
            return site.mask is not None
        return self.module.training or site.entry.kind == Zoneout.name


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

"""Find the places of a model where dropout acts, or could.

`find_sites` watches one real forward in training mode: which layers are called, in which
order, with tensors of which shape, and where activations and dropout lie between them.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from droptune.calls import Call, call, first_tensor, is_floating, role_of, shape_of, watch
from droptune.droppers import check_model, is_off
from droptune.errors import ModelError
from droptune.functional import leaks, watched
from droptune.inside import places
from droptune.kinds import KINDS
from droptune.kinds.base import CHANNELS_FIRST, INSIDE, Kind
from droptune.recurrent import time_major

_INSIDE_KINDS = {"NLS": "locked", "NLM": "zoneout", "GS": "weight_drop", "VF": "embedding"}
_STATES = ("NLS", "NLM")


@dataclass(frozen=True)
class Site:
    """One place of a model where dropout can act.

    Attributes:
        name: what a plan calls it: the module's dotted path; with "@input" behind it when
            the place is the module's input; "@input" alone is the input of the model. With
            "@dropout" or "@attention" behind it, the call of a function in that module's
            forward; "@dropout.1" is the second such call. With "@between", "@state", "@cell",
            "@weights" or "@rows", a place inside that layer (`droptune.inside`). With
            "@residual" behind it, the residual branch that the module ends, before it is added
            to its shortcut.
        path: the dotted path of the module it is reached by; "" is the model itself.
        reach: "module" (an existing dropout module), "output" or "input" (of the module),
            "function" (a call in its forward), "inside" (a place inside a layer).
        role: "input", "embedding", "hidden", "conv", "recurrent", "attention" (weights
            of attention), "residual" (a branch that is added to its shortcut) or "head".
        layout: the axes of the tensor, such as "NF", "NCHW" or "LNF": N sample, C channel,
            F feature, L position, D, H, W space, ? unknown; "NHLL" and "NLL" are weights
            of attention, H the head; "NLS" and "NLM" are a recurrent layer's hidden state and
            memory cell, "GS" its hidden-to-hidden matrices, "VF" the rows of an embedding.
        depth: the place in call order, from 0.
        shape: the tensor's shape without the batch axis; of weights all of it.
        kind: the kind of dropout found there, or None.
        rate: the rate found there, or None.
        calls: how often it is called in one forward; above 1 the calls share one rate. For
            the call of a function: how often its module makes it.
        before_norm: whether there is dropout whose noise meets a BatchNorm with no layer
            between, and shifts its statistics.
    """

    name: str
    path: str
    reach: str
    role: str
    layout: str
    depth: int
    shape: tuple[int, ...]
    kind: str | None = None
    rate: float | None = None
    calls: int = 1
    before_norm: bool = False

    @property
    def default_kind(self) -> str:
        """The kind found there; else what suits the place.

        Channel for maps, drop_path for residual branches, standard for the rest; inside layers
        locked for hidden states, zoneout for memory cells, weight_drop for hidden-to-hidden
        matrices, embedding for rows.
        """
        if self.kind is not None:
            return self.kind
        if self.layout in INSIDE:
            return _INSIDE_KINDS[self.layout]
        if self.role == "residual":
            return "drop_path"
        return "channel" if self.layout in CHANNELS_FIRST and self.role == "conv" else "standard"

    @property
    def allowed(self) -> tuple[str, ...]:
        """The kinds that suit its layout and role."""
        return tuple(name for name in KINDS if self.fits(name))

    def fits(self, kind: str) -> bool:
        """Tell whether a kind suits its layout and role."""
        return KINDS[kind].fits(self.layout, self.role)

    def takes_part(self, kinds: Collection[str] = ()) -> bool:
        """Tell whether a site belongs to a space, or to a plan for everywhere.

        All do but two sorts of places without dropout today, for each place costs trials:
        residual branches, where noise is mostly rejected (rtdl's tuned FT-Transformers: 9 of
        9), and states of recurrent layers, where a layer then runs step by step. They take part
        where one of the kinds is among `invited_by`.
        """
        return self.kind is not None or not self._by_wish or bool({*kinds} & {*self.invited_by})

    @property
    def _by_wish(self) -> bool:
        return self.role == "residual" or self.layout in _STATES

    @property
    def invited_by(self) -> tuple[str, ...]:
        """The kinds that bring a place into a space which is else left out; none for others."""
        if self.role == "residual":
            return tuple(k for k in self.allowed if KINDS[k].branches)
        return self.allowed if self.layout in _STATES else ()

    @property
    def remark(self) -> str | None:
        """What is to be known before dropout is put there, in a few words."""
        said = []
        if self.before_norm:
            said.append("before a BatchNorm, whose statistics it shifts")
        if not self.takes_part():
            asked = " or ".join(self.invited_by)
            said.append(f"only where {asked} is asked for" if asked else "only in plans by hand")
        if self.calls > 1:
            said.append(f"{self.calls} calls share one rate")
        return "; ".join(said) or None

    def described(self) -> dict[str, Any]:
        """Return all about the site as JSON values, with the kinds that fit and a remark."""
        return {**self.to_json(), "kinds": list(self.allowed), "remark": self.remark}

    def to_json(self) -> dict[str, Any]:
        """Return the site as the JSON values that a store keeps."""
        values = {**asdict(self), "shape": list(self.shape)}
        del values["before_norm"]
        return values


def find_sites(model: nn.Module, example: Any) -> tuple[Site, ...]:
    """Return the sites of a model, in call order.

    Listed are the model's input, the place after each hidden activation, the place before
    the head, the input of each recurrent layer, every module that drops and is called (torch's
    own, and others that are seen to: `droptune.droppers`), every call of a function that drops,
    inside attention too, the places inside recurrent layers and embeddings, and every residual
    branch that ends in a module. Where a norm follows an activation the place is behind the
    norm: noise in front of a BatchNorm shifts its statistics (Li et al.,
    https://arxiv.org/abs/1801.05134).

    A residual branch is what is added to the value it is computed from, through a layer with
    weights; or to a projection of that value, through more layers.

    The model is left as it was: a copy of it runs, and torch's global generator is put
    back.

    Args:
        model: any module.
        example: a batch of at least two samples: a tensor, a tuple of arguments or a dict
            of keyword arguments.

    Raises:
        ModelError: the model is no `nn.Module`, is compiled or scripted, has a plan on it, or
            fails on the example.
    """
    check_model(model)
    if has_plan(model):
        raise ModelError("the model has a plan on it; take it off first: droptune.remove(model)")
    calls = watch(model, example)
    found = _existing(calls) + _model_input(calls, example) + _insertions(calls)
    found += _inside(calls, example) + _branches(calls, shape_of(example)[:1])
    sites = sorted(found, key=lambda place: place[0])
    return tuple(replace(site, depth=depth) for depth, (_, site) in enumerate(sites))


def find_leaks(model: nn.Module, example: Any) -> list[str]:
    """Return where functions drop in eval mode, too, as "PATH@dropout" or "PATH@attention"."""
    return leaks(model, lambda copy: call(copy, example))


def leaks_line(leaks: Iterable[str]) -> str:
    """Return what to say of the leaks that were found."""
    return (
        f"drops in eval mode, too: {', '.join(leaks)}; there pass training=self.training "
        "(to attention: dropout_p=0.0 unless self.training)"
    )


def has_plan(model: nn.Module) -> bool:
    """Tell whether a plan is on a model, "no dropout" included where it switches any off."""
    return any(isinstance(m, Kind) or is_off(m) or watched(m) is not None for m in model.modules())


def _inside(calls: list[Call], example: Any) -> list[tuple[float, Site]]:
    """Return the places inside layers; of embeddings, those that are asked for each sample."""
    found, samples = [], shape_of(example)[:1]
    for index, seen in enumerate(calls):
        if seen.what != "weight" or seen.path is None or not seen.first:
            continue
        if role_of(seen.module) == "embedding" and not set(samples) <= set(seen.given):
            continue  # of positions, say
        for step, (name, place) in enumerate(places(seen.module, seen.given).items()):
            site = Site(
                name=f"{seen.path}@{name}",
                path=seen.path,
                reach="inside",
                role=role_of(seen.module),
                layout=place.layout,
                depth=0,
                shape=place.shape,
                kind=place.kind,
                rate=place.rate,
                calls=seen.count * place.calls,
            )
            found.append((index + step / 10, site))
    return found


def _layout(shape: tuple[int, ...], role: str) -> str:
    channels_first = role == "conv"
    names = {2: "NF", 3: "NCL" if channels_first else "NLF", 5: "NCDHW"}
    names[4] = "NCHW" if channels_first else "NHWF"
    return names.get(len(shape), "N" + "?" * (len(shape) - 1))


def _of_a_sample(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return a shape without the axis of samples."""
    return (shape[0], *shape[2:]) if layout == "LNF" else shape[1:]


def _head(calls: list[Call]) -> int:
    """Return the index of the last weight layer, or -1."""
    return max((i for i, seen in enumerate(calls) if seen.what == "weight"), default=-1)


def _is_before_head(calls: list[Call], index: int) -> bool:
    """Tell whether only the head, and no other weight layer, follows."""
    return index > _head(calls) or not any(
        seen.what == "weight" for seen in calls[index + 1 : _head(calls)]
    )


def _existing(calls: list[Call]) -> list[tuple[float, Site]]:
    found = []
    for index, seen in enumerate(calls):
        if seen.what not in ("dropout", "attention") or not seen.first:
            continue
        role, layout = _role_and_layout(calls, index)
        site = Site(
            name=f"{seen.path}{seen.call}",
            path=seen.path,
            reach="function" if seen.call else "module",
            role=role,
            layout=layout,
            depth=0,
            shape=_of_a_sample(seen.given, layout),
            kind=seen.kind,
            rate=seen.rate,
            calls=seen.count,
            before_norm=seen.kind is not None and _is_before_norm(calls[index + 1 :]),
        )
        found.append((index, site))
    return found


def _is_before_norm(after: list[Call]) -> bool:
    """Tell whether a BatchNorm comes next, with at most an activation between."""
    met = next((seen for seen in after if seen.what in ("weight", "norm", "residual")), None)
    return met is not None and isinstance(met.module, nn.modules.batchnorm._BatchNorm)


def _branches(calls: list[Call], batch: tuple[int, ...]) -> list[tuple[float, Site]]:
    """Return the residual branches; where samples are not in front the axes are unknown."""
    found = []
    for index, seen in enumerate(calls):
        if seen.what == "residual" and seen.first:
            name, shape = f"{seen.path}{seen.call}", seen.given
            layout = _layout(shape, seen.role) if shape[:1] == batch else "?" * len(shape)
            layout = "LNF" if seen.steps_first else layout
            shape = _of_a_sample(shape, layout)
            site = Site(name, seen.path, "output", "residual", layout, 0, shape)
            found.append((index, replace(site, calls=seen.count)))
    return found


def _role_and_layout(calls: list[Call], index: int) -> tuple[str, str]:
    """Return what is said of the place of a dropout that is there."""
    seen = calls[index]
    if seen.what == "attention":
        layouts = {3: "NLL", 4: "NHLL"}
        return "attention", layouts.get(len(seen.given), _layout(seen.given, "hidden"))
    role = "hidden" if _is_turned(calls, index) else seen.role
    layout = _layout(seen.given, _consumer(calls, index) if role == "input" else role)
    layout = "LNF" if seen.steps_first else layout
    role = "residual" if seen.ends_branch else _settled(role, layout)
    if role == "hidden" and _is_before_head(calls, index):
        role = "head"
    return role, layout


def _is_turned(calls: list[Call], index: int) -> bool:
    """Tell whether the maps of a convolution have become positions, as a ViT's patches do."""
    if calls[index].role != "conv":
        return False
    made = next(c.returned for c in reversed(calls[:index]) if c.what == "weight")
    given = calls[index].given
    if len(given) == len(made):
        return given[1:] == (*made[2:], made[1]) != made[1:]
    return len(given) == 3 and given[2] == made[1]  # with a class token there are more positions


def _consumer(calls: list[Call], index: int) -> str:
    """Return the role of the next weight layer."""
    return next((role_of(c.module) for c in calls[index:] if c.what == "weight"), "hidden")


def _settled(role: str, layout: str) -> str:
    """Return the role of a place; maps that were flattened are no longer a convolution's."""
    return "hidden" if role == "conv" and layout not in CHANNELS_FIRST else role


def _model_input(calls: list[Call], example: Any) -> list[tuple[float, Site]]:
    """Return the model's input, unless it holds no floats or meets a dropout first."""
    first = next((i for i, seen in enumerate(calls) if seen.what == "weight"), None)
    if first is None or not calls[first].floating or not is_floating(first_tensor(example)):
        return []
    if any(seen.what == "dropout" for seen in calls[:first]):
        return []
    shape = shape_of(example)
    layout = _layout(shape, role_of(calls[first].module))
    if shape != calls[first].given:
        layout = "N" + "?" * (len(shape) - 1)  # reshaped before a layer says what the axes are
    return [(-1.0, Site("@input", "", "input", "input", layout, 0, shape[1:]))]


def _insertions(calls: list[Call]) -> list[tuple[float, Site]]:
    weights = [i for i, seen in enumerate(calls) if seen.what == "weight"]
    found = []
    for start, stop in zip(weights, weights[1:], strict=False):
        between = calls[start + 1 : stop]
        if any(seen.what == "dropout" for seen in between):
            continue
        producer = role_of(calls[start].module)
        site = _after_activation(between, calls[stop], producer)
        before_head = stop == weights[-1]
        same_tensor = site is not None and site.shape == _of_a_sample(
            calls[stop].given, site.layout
        )
        if site is not None:
            role = "head" if before_head and same_tensor and site.role == "hidden" else site.role
            found.append((stop - 0.5, replace(site, role=role)))
        if site is None and not before_head and isinstance(calls[stop].module, nn.RNNBase):
            site = _at_input(calls[stop], producer)
            found += [(stop - 0.5, site)] if site is not None else []
        if before_head and not same_tensor:
            head = _at_input(calls[stop], "head")
            if head is not None:
                found.append((stop - 0.25, head))
    return found


def _after_activation(between: list[Call], consumer: Call, producer: str) -> Site | None:
    """Return the site after the last activation between two weight layers."""
    last = max((i for i, c in enumerate(between) if c.what == "activation"), default=None)
    if last is None:
        return None
    norms = [seen for seen in between[last + 1 :] if seen.what == "norm"]
    place = norms[-1] if norms else between[last]
    if place.path is None or place.count > 1:
        # A function, or one module for several places: reach the place from behind it.
        return _at_input(consumer, producer)
    layout = "LNF" if place.steps_first else _layout(place.returned, producer)
    shape = _of_a_sample(place.returned, layout)
    return Site(place.path, place.path, "output", producer, layout, 0, shape)


def _at_input(consumer: Call, role: str) -> Site | None:
    if consumer.count > 1 or consumer.path is None or not consumer.floating:
        return None
    given, steps_first = consumer.given, consumer.steps_first
    if time_major(consumer.module) and len(given) == 3:  # dropout there has samples in front
        given, steps_first = (given[1], given[0], given[2]), False
    layout = "LNF" if steps_first else _layout(given, role_of(consumer.module))
    name = f"{consumer.path}@input"
    role, shape = _settled(role, layout), _of_a_sample(given, layout)
    return Site(name, consumer.path, "input", role, layout, 0, shape)

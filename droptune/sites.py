"""Find the places of a model where dropout acts, or could.

`find_sites` watches one real forward in training mode: which layers are called, in which
order, with tensors of which shape, and where activations and dropout lie between them.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from droptune.calls import GIVEN, Call, call, first_tensor, is_floating, role_of, shape_of, watch
from droptune.errors import ModelError
from droptune.functional import leaks, watched
from droptune.inside import places
from droptune.kinds.base import CHANNELS_FIRST, INSIDE, Kind
from droptune.recurrent import time_major

_INSIDE_KINDS = {"NLS": "locked", "NLM": "zoneout", "GS": "weight_drop", "VF": "embedding"}


@dataclass(frozen=True)
class Site:
    """One place of a model where dropout can act.

    Attributes:
        name: what a plan calls it: the module's dotted path; with "@input" behind it when
            the place is the module's input; "@input" alone is the input of the model. With
            "@dropout" or "@attention" behind it, the call of a function in that module's
            forward; "@dropout.1" is the second such call. With "@between", "@state", "@cell",
            "@weights" or "@rows", a place inside that layer (`droptune.inside`).
        path: the dotted path of the module it is reached by; "" is the model itself.
        reach: "module" (an existing dropout module), "output" or "input" (of the module),
            "function" (a call in its forward), "inside" (a place inside a layer).
        role: "input", "embedding", "hidden", "conv", "recurrent", "attention" (weights
            of attention) or "head".
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

    @property
    def default_kind(self) -> str:
        """The kind found there; else channel for convolutions, standard for the rest.

        Inside layers: locked for hidden states, zoneout for memory cells, weight_drop for
        hidden-to-hidden matrices, embedding for rows.
        """
        if self.kind is not None:
            return self.kind
        if self.layout in INSIDE:
            return _INSIDE_KINDS[self.layout]
        return "channel" if self.layout in CHANNELS_FIRST and self.role == "conv" else "standard"

    def to_json(self) -> dict[str, Any]:
        """Return the site as JSON values."""
        return {**asdict(self), "shape": list(self.shape)}


def find_sites(model: nn.Module, example: Any) -> tuple[Site, ...]:
    """Return the sites of a model, in call order.

    Listed are the model's input, the place after each hidden activation, the place before
    the head, the input of each recurrent layer, every dropout module of torch that is called,
    every call of a function that drops, inside attention too, and the places inside recurrent
    layers and embeddings. Where a norm follows an activation the place is behind the
    norm: noise in front of a BatchNorm shifts its statistics (Li et al.,
    https://arxiv.org/abs/1801.05134).

    The model is left as it was: a copy of it runs, and torch's global generator is put
    back.

    Args:
        model: any module.
        example: a batch of at least two samples: a tensor, a tuple of arguments or a dict
            of keyword arguments.

    Raises:
        ModelError: the model is no `nn.Module`, has a plan on it, or fails on the example.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; droptune needs a torch.nn.Module")
    if has_plan(model):
        raise ModelError("the model has a plan on it; take it off first: droptune.remove(model)")
    calls = watch(model, example)
    found = _existing(calls) + _model_input(calls, example) + _insertions(calls)
    found += _inside(calls, example)
    sites = sorted(found, key=lambda place: place[0])
    return tuple(replace(site, depth=depth) for depth, (_, site) in enumerate(sites))


def find_leaks(model: nn.Module, example: Any) -> list[str]:
    """Return where functions drop in eval mode, too, as "PATH@dropout" or "PATH@attention"."""
    return leaks(model, lambda copy: call(copy, example))


def has_plan(model: nn.Module) -> bool:
    """Tell whether a plan is on a model, "no dropout" included where it switches any off."""
    return any(
        isinstance(m, Kind) or hasattr(m, GIVEN) or watched(m) is not None for m in model.modules()
    )


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
        )
        found.append((index, site))
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
    role = _settled(role, layout)
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

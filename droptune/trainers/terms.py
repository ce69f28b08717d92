"""The arithmetic of a loss's terms: further passes over a batch, and how far outputs differ.

The same code serves one member and a stack of them: what differs by member (a weight, a share)
is a tensor with one number a member, or without an axis where there is one member.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from droptune.consistency import Place, Term, masked_place
from droptune.errors import ModelError, PlanError
from droptune.install import another_pass
from droptune.kinds.noise import Part
from droptune.plan import Plan
from droptune.sites import Site
from droptune.trainers.base import Loss, mean_loss

Distance = Callable[[Tensor, Tensor], Tensor]
#: Losses, and the outputs that they are of -> losses with smoothed labels.
Smooth = Callable[[Tensor, Tensor], Tensor]

#: Losses whose outputs are logits of classes.
_LOGITS = ("cross_entropy", "binary_cross_entropy")
#: Streams of the second pass of r_drop and fraternal, which share it.
AGAIN: Part = ("again", "again")


class Need(NamedTuple):
    """What a step must do for a term; members with equal needs share all but numbers."""

    name: str
    place: Place | None = None

    @property
    def distance(self) -> str:
        """The term by whose distance outputs are compared.

        Where weights are masked it is fraternal's, the squared difference of outputs, as in the
        code of adversarial dropout for recurrent networks.
        """
        weights = self.place is not None and not self.place.by_sample
        return "fraternal" if weights else self.name


class Knobs(NamedTuple):
    """The numbers of a term, each a scalar tensor, or one number a member.

    Attributes:
        weight: of the term; 0 for members without it.
        share: of the second pass's loss in the task's; 0 for members without the term.
        flips: the largest share of units that is dropped.
    """

    weight: Tensor
    share: Tensor
    flips: Tensor


class Again(Protocol):
    """Passes the batch again; returns the output, which leaves no trace in buffers."""

    def __call__(
        self, part: Part, site: str | None = None, mask: Tensor | None = None
    ) -> Tensor: ...


def numbers(term: Term | None, progress: float) -> tuple[float, float, float]:
    """Return a member's weight, share and flips at a point of training."""
    if term is None:
        return 0.0, 0.0, 0.0
    if term.is_adversarial:
        return term.at(progress), 0.0, term.flips
    return term.at(progress), 0.5, 0.0


def need_of(plan: Plan, sites: Callable[[], Sequence[Site]]) -> Need | None:
    """Return what a plan's term needs, or None.

    Args:
        plan: any.
        sites: returns the model's sites; called only where masks need a place.

    Raises:
        PlanError: there is no place for the masks of an adversarial term.
    """
    if plan.term is None:
        return None
    return Need(plan.term.name, _place(plan, sites()) if plan.term.is_adversarial else None)


def _place(plan: Plan, sites: Sequence[Site]) -> Place:
    """Return where a plan's masks act: the term's site, else the last inner one of the plan."""
    if plan.term.site is None:
        place = masked_place([site for site in sites if site.name in plan])
    else:
        place = masked_place([site for site in sites if site.name == plan.term.site])
    if place is None:
        where = "no site of the plan" if plan.term.site is None else f"site {plan.term.site!r}"
        fit = ", ".join(repr(site.name) for site in sites if masked_place([site]))
        raise PlanError(f"adversarial: {where} can take a mask of units; allowed: {fit or 'none'}")
    return place


def descended(
    losses: Tensor,
    first: Tensor,
    needs: Mapping[Need, Knobs],
    again: Again,
    loss: Callable[[Tensor], Tensor],
    distance: Callable[[str, Tensor, Tensor], Tensor],
    batch: tuple[int, ...],
) -> Tensor:
    """Return what a step descends: the task's loss with the terms.

    `(1 - share) * L(f) + share * L(f') + weight * D(f, f')`, f' the output of a second pass; of
    adversarial `L(f) + weight * D(stopgrad f, f')`, f' the pass with the worst mask. The probe
    that finds the mask and the pass with it see the same noise at all other sites. A member
    whose numbers are 0 has the loss and the gradient of the first pass, bit for bit.

    Args:
        losses: of the first pass.
        first: its output.
        needs: what the step does, and the numbers to it.
        again: makes a further pass.
        loss: of an output.
        distance: of two outputs, by the term's name.
        batch: `(members,) samples`.
    """
    total, other = losses, None
    for need, knobs in needs.items():
        weight, share = knobs.weight.to(losses.dtype), knobs.share.to(losses.dtype)
        if need.place is not None:
            anchor = first.detach()
            far = partial(distance, need.distance, anchor)
            worst = _worst(need.place, knobs.flips, again, batch, anchor, far)
            total = total + weight * far(worst)
            continue
        if other is None:
            other = again(AGAIN)
            other_losses = loss(other)
        # Shares add up to at most 1: a member has one term.
        total = total - share * losses + share * other_losses
        total = total + weight * distance(need.name, first, other)
    return total


def _worst(
    place: Place,
    flips: Tensor,
    again: Again,
    batch: tuple[int, ...],
    anchor: Tensor,
    far: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the output of the pass with the mask that an adversarial term finds.

    The share of flips is one of a sample's units; of weights, of those that feed one gate.
    """
    site = place.site
    lead = batch if place.by_sample else batch[:-1]
    shape = (*lead, *place.shape)
    mask = torch.ones(shape, dtype=anchor.dtype, device=anchor.device).requires_grad_()
    probe = again((f"probe {site}", "adversarial"), site, mask)
    try:
        (jacobian,) = torch.autograd.grad(far(probe).sum(), mask, materialize_grads=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ModelError(
            "an adversarial term needs a gradient by its mask, which torch.utils.checkpoint with "
            "use_reentrant=True cannot give; use use_reentrant=False, or another term"
        ) from error
    rows = (*lead, -1) if place.by_sample else shape
    delta = flips.view(*flips.shape, *(1,) * (len(rows) - 1 - flips.dim()))
    ones = torch.ones_like(jacobian).reshape(rows)
    found = adversarial_mask(jacobian.reshape(rows), ones, delta).reshape(shape)
    return again((f"masked {site}", "adversarial"), site, found)


def adversarial_mask(jacobian: Tensor, mask: Tensor, delta: float | Tensor) -> Tensor:
    """Return the mask that raises a distance most to first order, a few flips away.

    Greedy, row by row: a kept entry whose derivative is below 0 and a dropped one whose
    derivative is above 0 are candidates; those strictly above the `int(H * delta) + 1`-th
    largest |derivative| are flipped, so at most `int(H * delta)`, fewer where they tie. The row
    is then scaled to the sum H, unless nothing of it is kept. Where `int(H * delta)` is 0, the
    mask comes back as it was. Park et al. (see droptune/consistency.py), as their code does it.

    Args:
        jacobian: derivative of the distance by the mask, `... x H`.
        mask: of 0 and 1, of the same shape.
        delta: in [0, 1), or a tensor of one number a row, broadcastable to `...`.

    Returns:
        A tensor of the shape of `mask`, without gradient.
    """
    jacobian, mask = jacobian.detach(), mask.detach()
    units = mask.shape[-1]
    delta = torch.as_tensor(delta, dtype=torch.float64, device=mask.device)
    most = (units * delta).floor().long().expand(mask.shape[:-1])[..., None]
    kept = mask > 0
    score = torch.where(kept, -jacobian, jacobian).clamp(min=0.0)
    limit = score.sort(-1, descending=True).values.gather(-1, most)
    flipped = torch.where(score > limit, 1 - mask, mask)
    total = flipped.sum(-1, keepdim=True)
    scaled = flipped * (units / torch.where(total > 0, total, torch.ones_like(total)))
    return torch.where(most > 0, scaled, mask)


def distance_of(name: str, loss: str | Loss) -> Distance:
    """Return how far a term holds two outputs of one member apart, as a scalar.

    Args:
        name: of the term.
        loss: of the task. Outputs of cross_entropy and binary_cross_entropy are logits of
            classes, and r_drop and adversarial compare the distributions; all else is compared
            by the mean squared difference of outputs.
    """
    if name == "fraternal" or loss not in _LOGITS:
        return lambda one, other: _gap(one, other).square().mean()
    compare = _divergence if name == "adversarial" else _symmetric
    if loss == "cross_entropy":
        return compare
    return lambda one, other: compare(_two_classes(one), _two_classes(other))


def _two_classes(output: Tensor) -> Tensor:
    """Return the logits of class 1 as logits of two classes, on axis 1."""
    return torch.stack((output, torch.zeros_like(output)), 1)


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return KL(p || q), the mean over samples; p and q are the softmax of logits on axis 1.

    Written so that its gradient is exactly 0, and not the noise of rounding, where both agree.
    """
    log_one, log_other = one.logsumexp(1, keepdim=True), other.logsumexp(1, keepdim=True)
    by_class = (one - log_one).exp() * _gap(one, other)
    return (by_class.sum(1, keepdim=True) - (log_one - log_other)).mean()


def _symmetric(one: Tensor, other: Tensor) -> Tensor:
    """Return (KL(p || q) + KL(q || p)) / 2 = sum (p - q) (l - l') / 2, the mean over samples."""
    return ((one.softmax(1) - other.softmax(1)) * _gap(one, other)).sum(1).mean() / 2


def _gap(one: Tensor, other: Tensor) -> Tensor:
    """Return the difference; 0 where both are the same infinity, as of a class ruled out."""
    return (one - other).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)


def passed_again(model: nn.Module, place: tuple, *args: Any, **kwargs: Any) -> Any:
    """Return a model's output in a further pass, which leaves its buffers alone.

    Running statistics of norms therefore follow the first pass.

    Args:
        model: with a plan on it.
        place: what an `Again` is given: streams, and a site with its mask if there is one.
        *args: of the model.
        **kwargs: of the model.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with another_pass(model, *place):
        return functional_call(model, buffers, args, kwargs)


def as_it_is(losses: Tensor, output: Tensor) -> Tensor:
    """Return losses without smoothed labels."""
    return losses


def penalised(
    term: Term,
    need: Need,
    progress: float,
    loss: Tensor,
    first: Tensor,
    again: Again,
    target: Tensor,
    by: str | Loss,
    samples: int,
    smooth: Smooth = as_it_is,
) -> Tensor:
    """Return what a step of one member descends; see `descended`.

    Args:
        term: of its plan.
        need: of that.
        progress: from 0 (first epoch) to 1 (last).
        loss: of the first pass.
        first: its output.
        again: makes a further pass.
        target: of the batch.
        by: the task's loss.
        samples: of the batch.
        smooth: a loss and the output it is of -> the loss with smoothed labels.
    """
    values = torch.tensor(numbers(term, progress), dtype=torch.float64, device=first.device)
    return descended(
        loss,
        first,
        {need: Knobs(*values.unbind())},
        again,
        lambda output: smooth(mean_loss(by)(output, target), output),
        lambda name, one, other: distance_of(name, by)(one, other),
        (samples,),
    )

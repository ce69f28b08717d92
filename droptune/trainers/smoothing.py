"""Label smoothing, a share for each member: targets that leave some probability to all classes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from droptune.errors import PlanError
from droptune.metrics import IGNORED
from droptune.plan import Plan


def share_of(plan: Plan, loss: object) -> float:
    """Return the share of probability that a plan's label smoothing spreads over all classes.

    Raises:
        PlanError: the task's loss has no labels to smooth.
    """
    share = plan.training.get("label_smoothing", 0.0)
    if share and loss != "cross_entropy":
        raise PlanError(
            f"label_smoothing {share:g}: only the loss 'cross_entropy' has labels to smooth; "
            "leave it out of the plan"
        )
    return share


def shares_of(rows: Sequence[int | None], plans: Mapping[int, Plan]) -> Tensor | None:
    """Return the shares of a block's members, one a row; None where no member smooths.

    Args:
        rows: the slot of each row of the stack, or None.
        plans: slot -> plan.
    """
    found = [plans[s].training.get("label_smoothing", 0.0) if s in plans else 0.0 for s in rows]
    return torch.tensor(found, dtype=torch.float64) if any(found) else None


def smoothed(losses: Tensor, output: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Return the cross-entropy with smoothed labels: `(1 - share) * L + share * U`.

    U is the mean of `-log p` over classes and samples (Szegedy et al.,
    https://arxiv.org/abs/1512.00567, as in `torch.nn.functional.cross_entropy`). A class that
    the model rules out, with a logit of minus infinity, adds nothing. A share of 0 gives the
    loss and its gradient as they were, bit for bit.

    Args:
        losses: mean cross-entropies, a scalar or `members`.
        output: `(members x) samples x classes (x ...)` logits.
        target: `samples (x ...)` labels, shared by all members.
        share: like `losses`.
    """
    axis = output.dim() - target.dim()  # of classes: behind the members and the samples
    logs = output.log_softmax(axis)
    spread = -logs.masked_fill(logs.isneginf(), 0.0).mean(axis)
    kept = (target != IGNORED).to(spread.dtype)
    axes = tuple(range(losses.dim(), spread.dim()))
    uniform = (spread * kept).sum(axes) / kept.sum().clamp(min=1)
    share = share.to(losses.dtype)
    return (1 - share) * losses + share * uniform

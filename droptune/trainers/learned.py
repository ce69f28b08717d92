"""Rates that training learns: what is trained besides parameters, what that adds to the loss."""

from collections.abc import Mapping

from torch import Tensor, nn

from droptune.kinds.concrete import Concrete, learned_logit, penalty
from droptune.plan import Plan

#: The weight of the penalty times the number of training samples: 1 where the loss is the mean
#: negative log-likelihood, 2 where it is the mean squared error, twice that of unit variance
#: (dr = 2 / (tau N) in the code of Gal et al., with tau = 1).
_SCALE = {"mse": 2.0}


def learners(model: nn.Module) -> dict[str, Concrete]:
    """Return the kinds of a model that learn their rate, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, Concrete)}


def learned_by(plan: Plan, kinds: Mapping[str, Concrete]) -> dict[str, Concrete]:
    """Return those of the kinds that learn their rate which a plan uses, by path."""
    return {
        path: kind
        for path, kind in kinds.items()
        if kind.site in plan and plan[kind.site].kind == kind.name
    }


def with_penalty(
    total: Tensor,
    kinds: Mapping[str, Concrete],
    buffers: Mapping[str, Tensor],
    loss: object,
    samples: int,
) -> Tensor:
    """Return a loss with what learned rates add: `scale / samples * penalty` for each.

    Args:
        total: the loss, one number a member where buffers are stacked.
        kinds: that learn, by path; of a model that has passed a batch.
        buffers: of the model, or of all members, by name.
        loss: of the task.
        samples: of the training data.
    """
    scale = _SCALE.get(loss, 1.0) if isinstance(loss, str) else 1.0
    for path, kind in kinds.items():
        if kind.units is not None:
            found = penalty(buffers[f"{path}.rate"], buffers[f"{path}.shift"], *kind.units)
            total = total + (scale / samples * found).to(total.dtype)
    return total


def learned_metrics(
    kinds: Mapping[str, Concrete], buffers: Mapping[str, Tensor], row: int | None = None
) -> dict[str, float]:
    """Return "rate SITE" -> the rate learned so far.

    Args:
        kinds: that the member's plan uses, by path.
        buffers: its buffers, or those of all members, by name.
        row: of the member in these.
    """
    found = {}
    for path, kind in kinds.items():
        logit = learned_logit(buffers[f"{path}.rate"], buffers[f"{path}.shift"])
        rate = logit.detach().sigmoid()
        found[f"rate {kind.site}"] = (rate if row is None else rate[row]).item()
    return found

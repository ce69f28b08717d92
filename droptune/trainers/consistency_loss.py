"""The loss of a plan with a term, for the user's own training loop."""

from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor, nn

from droptune.calls import call, first_tensor
from droptune.errors import PlanError
from droptune.install import installed, remove
from droptune.plan import Plan
from droptune.sites import Site, find_sites
from droptune.trainers.base import Loss, checked_output, mean_loss
from droptune.trainers.terms import need_of, passed_again, penalised


class ConsistencyLoss:
    """The loss of a model's batch, with the term that a plan adds to it.

    A model can hold a plan's dropout, but not what the plan adds to the loss: further passes
    over the batch. Here they are made. Running statistics of norms follow the first pass. In eval
    mode the loss is the plain one.

    Example:
        >>> model = droptune.apply(build(), plan).train()
        >>> loss = droptune.ConsistencyLoss(model, plan, x[:2])
        >>> loss(x, y, progress=epoch / (epochs - 1)).backward()

    Args:
        model: with the plan on it, see `droptune.apply`; it returns one tensor.
        plan: its term counts; without one the loss is the plain one.
        example: a batch of two samples or more; needed for an adversarial term alone, whose
            masks must find their place.
        loss: "cross_entropy", "binary_cross_entropy", "mse" or a function (output, target) ->
            mean loss, as in `Study`.

    Raises:
        PlanError: an adversarial term has no place in this model.
        TrainingError: the loss is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        example: Any = None,
        loss: str | Loss = "cross_entropy",
    ) -> None:
        mean_loss(loss)  # refuses what is unknown
        self.model, self.term, self.loss = model, plan.term, loss
        self._need = need_of(plan, partial(_sites, model, example))

    def __call__(self, x: Any, y: Tensor, progress: float = 1.0) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            x: a tensor, a tuple of arguments or a dict of keywords for the model.
            y: targets.
            progress: from 0 (first epoch) to 1 (last); the weight of a term with a ramp rises
                with it.
        """
        output = checked_output(call(self.model, x))
        loss = mean_loss(self.loss)(output, y)
        if self._need is None or not self.model.training:
            return loss

        def again(*place: Any) -> Tensor:
            return checked_output(call(partial(passed_again, self.model, place), x))

        size = len(first_tensor(x))
        return penalised(self.term, self._need, progress, loss, output, again, y, self.loss, size)


def _sites(model: nn.Module, example: Any) -> list[Site]:
    """Return the sites of a model where a plan has installed dropout."""
    if example is None:
        raise PlanError("an adversarial term needs example=, a batch of two samples or more")
    places = installed(model)
    bare = remove(deepcopy(model))
    return [site for site in find_sites(bare, example) if site.name in places]

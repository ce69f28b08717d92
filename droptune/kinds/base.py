"""What every kind of dropout is: a small module with a rate, and noise of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from droptune.errors import PlanError
from droptune.kinds.noise import Stream
from droptune.kinds.setting import Setting, checked

#: Layouts of places inside layers, where only kinds act that name them: hidden states (S) and
#: memory cells (M) from step to step, hidden-to-hidden matrices of gates (G), the rows of an
#: embedding, one for each word type (V).
INSIDE = frozenset({"NLS", "NLM", "GS", "VF"})


class Kind(nn.Module, ABC):
    """Base of the kinds. Identity in eval mode, and at rate 0 also in training.

    The rate is a buffer, so it is data, and so is each setting: members of a fused trainer
    share one module and differ in the values of these buffers alone. They are not persistent,
    so that no `state_dict` changes. A kind defines `drop`, which preserves the mean of `x`
    over masks, of each element or of a whole sample; alpha keeps mean and variance instead,
    drop_key the sum of each row of weights; max_drop, which takes away maxima, and layer_drop
    scale nothing and lower the mean; concrete keeps it but for what its relaxation takes.
    Zoneout acts on what becomes of a state: there eval mode is the mean over masks, not the
    identity.

    Args:
        site: the site's name; the kind's noise is a function of it.
        rate: probability of dropping, in [0, 1).
        settings: of those in the class's `settings`, the ones that differ from their defaults.

    Raises:
        PlanError: the kind has no such setting, or the value is not allowed.
    """

    name: ClassVar[str]
    #: Layouts of the tensors this kind can act on; empty means all but those of `INSIDE`.
    layouts: ClassVar[frozenset[str]] = frozenset()
    #: Roles of the sites where a space may try this kind; empty means all.
    roles: ClassVar[frozenset[str]] = frozenset()
    #: Whether a space that tries this kind tries it on residual branches, too.
    branches: ClassVar[bool] = False
    #: What else may be set, by name; each is a buffer of that name.
    settings: ClassVar[Mapping[str, Setting]] = MappingProxyType({})
    #: All kinds by name, for messages; the package fills it.
    known: ClassVar[Mapping[str, "type[Kind]"]] = {}

    rate: Tensor

    def __init__(self, site: str, rate: float = 0.0, **settings: float) -> None:
        super().__init__()
        given = checked(self.name, self.settings, settings)
        for name, value in {"rate": rate, **self.values(given)}.items():
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)
        self.site = site
        self.stream = Stream(f"{site}/{self.name}")

    @classmethod
    def fits(cls, layout: str, role: str) -> bool:
        """Tell whether this kind is right for tensors of this layout at a site of this role."""
        at_home = layout in cls.layouts if cls.layouts else layout not in INSIDE
        return at_home and (not cls.roles or role in cls.roles)

    @classmethod
    def only_inside(cls) -> bool:
        """Tell whether this kind acts nowhere but inside layers."""
        return bool(cls.layouts) and cls.layouts <= INSIDE

    @classmethod
    def values(cls, given: Mapping[str, float]) -> dict[str, float]:
        """Return the value of every setting: the given one, or the default."""
        return {name: given.get(name, known.default) for name, known in cls.settings.items()}

    def set_rate(self, rate: float) -> None:
        """Set the rate, in place."""
        self.rate.fill_(rate)

    def check_axes(self, x: Tensor) -> None:
        """Refuse a tensor of another number of axes than the kind's layouts have.

        Raises:
            PlanError: it has more or fewer.
        """
        if x.dim() not in map(len, self.layouts):
            allowed = ", ".join(
                name
                for name, kind in self.known.items()
                if not (kind.roles or kind.only_inside())
                and (not kind.layouts or x.dim() in map(len, kind.layouts))
            )
            raise PlanError(
                f"site {self.site!r} holds a tensor of {x.dim()} axes, kind {self.name!r} needs "
                f"{' or '.join(sorted(self.layouts))}; name another kind there: {allowed}"
            )

    def _apply(self, fn: Callable, recurse: bool = True) -> "Kind":
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, after in self.named_buffers(recurse=False):
            if after.dtype != before[name].dtype:  # bfloat16() is for weights: 0.1 must stay 0.1
                setattr(self, name, before[name].to(after.device))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.training else x

    @abstractmethod
    def drop(self, x: Tensor) -> Tensor:
        """Return `x` (batch first, any further shape) with noise; called in training only."""

    def extra_repr(self) -> str:
        buffers = dict(self.named_buffers(recurse=False))
        if any(tensor.dim() for tensor in buffers.values()):
            return "rate=stacked"
        usual = {name: f"{known.default:g}" for name, known in self.settings.items()}
        shown = {name: f"{tensor.item():g}" for name, tensor in buffers.items()}
        return ", ".join(f"{n}={value}" for n, value in shown.items() if value != usual.get(n))


#: Layouts that have channels on axis 1 and something to share a mask over behind it.
CHANNELS_FIRST = frozenset({"NCL", "NCHW", "NCDHW"})


def channel_shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape of one number per sample and channel, broadcastable to `x`."""
    return (*x.shape[:2], *(1,) * (x.dim() - 2))

"""Models in which linear layers can compute only what controlled dropout keeps, or cannot."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from droptune import Plan, apply
from droptune.columns import Narrow

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SEQUENCE = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Square(torch.autograd.Function):
    """A function of one's own, which torch cannot override."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


class Hand(nn.Module):
    """Written by hand; what its forward does with the hidden tensor can be changed."""

    def __init__(self, use: str = "") -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop, self.use = nn.Dropout(0.2), use

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if self.use == "mean before":
            self.seen = h.mean().item()
        h = self.drop(h)
        h = F.gelu(self.b(h))
        h = F.dropout(h, 0.3, self.training)
        if self.use == "fan out":
            return self.c(h) + h.sum(-1, keepdim=True)
        if self.use == "activation":
            h = torch.sigmoid(h)
        if self.use == "in place":
            h += 1
        if self.use == "hook":
            h.register_hook(lambda gradient: 2 * gradient)
        if self.use == "foreign":
            h = Square.apply(h)
        if self.use == "view":
            h = h.view(-1, 2, 4).flatten(1)
        self.hidden = h if self.use == "kept" else None
        return self.c(h)


def mlp(*between: nn.Module, units: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Linear(units, 7), nn.Tanh(), nn.Linear(7, 3))


def nested() -> nn.Module:
    inner = nn.Sequential(nn.Linear(6, 8), nn.SiLU())
    return nn.Sequential(inner, nn.Sequential(nn.Identity(), nn.Linear(8, 3)))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 12, 0.1, batch_first=True)


def plan(*sites: str, rate: float = 0.5) -> Plan:
    return Plan({site: ("controlled", rate) for site in sites})


#: Name -> a builder, the plan, an example, and the layers that become narrow.
FITS = {
    "an activation": (lambda: mlp(nn.ReLU()), plan("1", "3", rate=0.4), X, ["0", "2"]),
    "in place": (lambda: mlp(nn.ReLU(inplace=True)), plan("1"), X, ["0"]),
    "dropout": (lambda: mlp(nn.GELU(), nn.Dropout(0.3)), plan("2"), X, ["0"]),
    "dropout behind": (lambda: mlp(nn.GELU(), nn.Dropout(0.3)), plan("1"), X, ["0"]),
    "two activations": (lambda: mlp(nn.Tanh(), nn.Softplus()), plan("2"), X, ["0"]),
    "no activation": (lambda: mlp(), plan("0"), X, ["0"]),
    "an input": (lambda: mlp(nn.ELU()), plan("2@input"), X, ["0"]),
    "nested": (nested, plan("0.1"), X, ["0.0"]),
    "by hand": (Hand, plan("drop", "@dropout", rate=0.3), X, ["a", "b"]),
    "a sequence": (lambda: mlp(nn.ReLU()), plan("1", "3"), SEQUENCE, ["0", "2"]),
    "a transformer": (encoder, plan("dropout"), SEQUENCE, ["linear1"]),
}


def made(name: str, seed: int = 3, cases: dict = FITS) -> tuple[nn.Module, Tensor]:
    """Return a model of a case, in float64 with its plan on, and an example."""
    builder, on, example, _ = cases[name]
    torch.manual_seed(0)
    return apply(builder().double(), on, seed=seed).train(), example


def hand(use: str = "") -> Hand:
    """Return the model written by hand, seen in training once; then it does what `use` says."""
    model, _ = made("by hand")
    model(X)
    model.use = use
    return model


def narrow(model: nn.Module) -> list[str]:
    """Return the layers that compute only what is kept."""
    named = model.named_modules()
    return [name for name, m in named if isinstance(vars(m).get("forward"), Narrow)]


def with_masks(model: nn.Module) -> nn.Module:
    """Give narrow layers their own forward back."""
    for module in model.modules():
        if isinstance(forward := vars(module).get("forward"), Narrow):
            forward.let_go()
    return model

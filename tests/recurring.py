"""Models with recurrent layers, and plans on them; shared by several tests."""

import torch
from torch import Tensor, nn

from droptune import apply, find_sites
from droptune.kinds import KINDS
from droptune.plan import Plan

TOKENS = torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(1))
#: The layers of torch, by name -> one of them with these sizes.
LAYERS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN of relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


class Words(nn.Module):
    """A language model: embedding, recurrent layers, and logits of the next token everywhere."""

    def __init__(self, layer=nn.LSTM, layers: int = 2, rate: float = 0.3, **options) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 5)
        rate = rate if layers > 1 else 0.0  # where it would do nothing torch warns
        self.rnn = layer(5, 6, num_layers=layers, dropout=rate, batch_first=True, **options)
        width = options.get("proj_size") or 6
        self.fc = nn.Linear(width * (1 + options.get("bidirectional", False)), 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.rnn(self.emb(tokens))[0])


def words(*args, seed: int = 0, dtype: torch.dtype = torch.float32, **options) -> Words:
    torch.manual_seed(seed)
    return Words(*args, **options).to(dtype)


def next_token(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of (N, L, V) logits and (N, L) tokens."""
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def one_layer(layer: str, dtype: torch.dtype = torch.float64, **options) -> nn.RNNBase:
    torch.manual_seed(0)
    return LAYERS[layer](5, 6, batch_first=True, **options).to(dtype)


def planned(module: nn.Module, seed: int = 0, **entries: tuple[str, float]) -> nn.Module:
    """Put a plan on a layer that is a model by itself: place=(kind, rate)."""
    plan = Plan({f"@{place}": entry for place, entry in entries.items()})
    return apply(module.train(), plan, seed=seed)


def noise(kind: str, site: str, rate: float, *shapes: tuple[int, ...], seed: int = 0) -> list:
    """Return what a kind makes of ones, in one draw after the other, as a plan's site would."""
    twin = KINDS[kind](site, rate).train()
    twin.stream.seed(seed)
    return [twin(torch.ones(shape, dtype=torch.float64)) for shape in shapes]


def inside(model: nn.Module, example: Tensor = TOKENS) -> dict[str, list[str]]:
    """Return the sites inside layers, with all kinds that fit there."""
    return {
        site.name: [name for name, kind in KINDS.items() if kind.fits(site.layout, site.role)]
        for site in find_sites(model, example)
        if site.reach == "inside"
    }

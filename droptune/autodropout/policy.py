"""The controller of AutoDropout: a small Transformer that writes plans, choice by choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

#: Width of the Transformer, its heads, and its layers.
WIDTH, HEADS, LAYERS = 32, 4, 2
#: A result that came late counts at most so many times.
CLIP = 2.0
#: Weight of the entropy, which keeps choices open.
ENTROPY = 0.03
RATE = 5e-3  # of Adam


@dataclass(frozen=True)
class Lesson:
    """What came of one proposal.

    Attributes:
        choices: what was chosen of each parameter, as an index.
        free: which of them were the policy's own choice, and not given.
        log_probability: of the free choices, by the policy as it was when it proposed them.
        advantage: how much better than the baseline the result was, in deviations.
    """

    choices: Sequence[int]
    free: Sequence[bool]
    log_probability: float
    advantage: float


class Policy:
    """A distribution over choices, one parameter after the other, that learns by REINFORCE.

    The logits of a parameter follow from all choices before it, by a causal Transformer. The
    last layer begins at 0, so an untaught policy is uniform. A step raises
    `mean_i w_i * advantage_i * log P(choices_i) + ENTROPY * H`, with importance weights
    `w_i = min(P(choices_i) / P_then(choices_i), CLIP)`, through which no gradient flows, for
    proposals that were made before the last steps; H is the sum of the entropies of
    all choices. Policy and weights are those of Pham, Le, "AutoDropout: Learning Dropout Patterns
    to Regularize Deep Networks", https://arxiv.org/abs/2101.01761; clipping, entropy and all
    numbers are this module's own.

    Args:
        sizes: how many choices each parameter has.
        seed: of the first weights.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.sizes = tuple(sizes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone: GPUs have theirs
            self._net = _Net(self.sizes)
        self._optimizer = torch.optim.Adam(self._net.parameters(), RATE)

    def propose(self, seed: int, given: Mapping[int, int] = {}) -> tuple[list[int], float]:  # noqa: B006
        """Draw choices.

        Args:
            seed: they are a function of it and of what the policy has learned.
            given: parameter -> a choice that is made already.

        Returns:
            A choice for each parameter, and the log-probability of those that were not given.
        """
        generator = torch.Generator().manual_seed(seed)
        choices: list[int] = []
        total = 0.0
        with torch.no_grad():
            for place in range(len(self.sizes)):
                logits = self._net(torch.tensor([choices + [0] * (len(self.sizes) - place)]))
                log_p = logits[0, place].log_softmax(0)
                drawn = int(torch.multinomial(log_p.exp(), 1, generator=generator))
                choices.append(given.get(place, drawn))
                total += 0.0 if place in given else log_p[drawn].item()
        return choices, total

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Make one step on a batch of lessons."""
        log_p = self._net(torch.tensor([lesson.choices for lesson in lessons])).log_softmax(2)
        chosen = torch.tensor([lesson.choices for lesson in lessons])[..., None]
        free = torch.tensor([lesson.free for lesson in lessons])
        now = (log_p.gather(2, chosen)[..., 0] * free).sum(1)
        then, advantage = torch.tensor(
            [(lesson.log_probability, lesson.advantage) for lesson in lessons]
        ).T
        weight = (now.detach() - then).exp().clamp(max=CLIP)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e9)).sum((1, 2)).mean()
        loss = -(weight * advantage * now).mean() - ENTROPY * entropy
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


class _Net(nn.Module):
    """Choices of all parameters -> logits for each, of which those behind it know nothing."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        most = max(sizes)
        # Each parameter has choices of its own, so equal indices of two are two tokens; the
        # first token stands for the beginning.
        starts = torch.arange(len(sizes)) * most + 1
        self.register_buffer("starts", starts)
        self.register_buffer("closed", torch.arange(most) >= torch.tensor(sizes)[:, None])
        self.token = nn.Embedding(len(sizes) * most + 1, WIDTH)
        self.place = nn.Parameter(torch.randn(len(sizes), WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Parameter(torch.zeros(len(sizes), WIDTH + 1, most))

    def forward(self, choices: Tensor) -> Tensor:
        """Map choices (N, parameters) to logits (N, parameters, most choices)."""
        tokens = choices + self.starts
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        count = choices.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool).triu(1)
        hidden = self.body(self.token(before) + self.place, mask=mask)
        hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], 2)  # for a bias
        logits = torch.einsum("npw,pwc->npc", hidden, self.head)
        return logits.masked_fill(self.closed, -inf)

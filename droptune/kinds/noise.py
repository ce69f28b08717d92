"""Where all randomness of dropout comes from.

Each site draws from a stream of its own, whose numbers are a function of (seed, site,
clock) alone: not of the other sites, not of torch's global generator, not of who else
trains. Members of a block therefore share their numbers (common random numbers), and a
run repeated alone draws what it drew in company, bit for bit.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def derive(seed: int, *parts: object) -> int:
    """Mix a seed with names and numbers into a new seed in [0, 2**63)."""
    text = "\0".join(str(part) for part in (seed, *parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


#: Which pass over a batch draws: what tells its generator from others, and which numbers.
Part = tuple[str, str]
FIRST: Part = ("", "")


class Stream:
    """The random numbers of one site.

    A loss may need a batch passed more than once (droptune/consistency.py). Each further pass
    draws from a generator of its own, so that the first pass draws what it would draw alone.
    Two parts that share their second name draw the same numbers.

    Attributes:
        part: which pass draws now.

    Args:
        name: what tells this stream from the others of the same model.
        seed: of the generators, as it is (`Stream.seed` is what mixes the name in); None
            derives one from `torch.initial_seed()` and the name at the first draw, which
            reads torch's global seed without drawing from its generator.
    """

    def __init__(self, name: str, seed: int | None = None) -> None:
        self.name = name
        self._seed = seed
        self.part = FIRST
        self._generators: dict[tuple[torch.device, Part], torch.Generator] = {}

    def seed(self, seed: int, clock: int = 0) -> None:
        """Start the numbers of epoch `clock` of the block with this seed."""
        self._seed = derive(seed, self.name, clock)
        for (_, part), generator in self._generators.items():
            generator.manual_seed(self._part_seed(part))

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw float32 numbers of this shape, uniform in [0, 1)."""
        return torch.rand(tuple(shape), generator=self._generator(device), device=device)

    def words(self, shape: Sequence[int]) -> Tensor:
        """Draw int16 numbers of this shape on CPU, uniform over all their values.

        Each 64-bit draw gives four.
        """
        cpu, count = torch.device("cpu"), math.prod(shape)
        # `random_` would do, but its overload for all 64 bits is named `from`, a word that the
        # Python of a traced program cannot contain. Here one of 2**64 values never comes.
        low, high, draws = -(2**63), 2**63 - 1, -(-count // 4)
        quads = torch.randint(
            low, high, (draws,), generator=self._generator(cpu), dtype=torch.int64, device=cpu
        )
        numbers = quads.view(torch.int16)
        return (numbers[:count] if count % 4 else numbers).view(tuple(shape))

    def normal(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw float32 numbers of this shape with mean 0 and variance 1."""
        return torch.randn(tuple(shape), generator=self._generator(device), device=device)

    def position(self, device: torch.device) -> Tensor:
        """Return where the numbers of the pass that draws now stand, for `go`."""
        return self._generator(device).get_state()

    def go(self, device: torch.device, position: Tensor) -> None:
        """Go where the numbers of the pass that draws now stood."""
        self._generator(device).set_state(position)

    def _generator(self, device: torch.device) -> torch.Generator:
        key = device, self.part
        if key not in self._generators:
            if self._seed is None:
                self._seed = derive(torch.initial_seed(), self.name)
            # One object for good: a traced step keeps hold of it and `seed` rewinds it.
            generator = torch.Generator(device).manual_seed(self._part_seed(self.part))
            self._generators[key] = generator
        return self._generators[key]

    def _part_seed(self, part: Part) -> int:
        return self._seed if part == FIRST else derive(self._seed, part[1])

    def state(self, device: torch.device) -> dict[str, object]:
        """Return where the numbers stand, and which pass draws, for `rewind`."""
        self._generator(device)
        return {**self.__getstate__(), "part": self.part}

    def rewind(self, state: dict) -> None:
        """Go back to a state from `__getstate__` or `state`, keeping the generators themselves."""
        self.part = state.get("part", self.part)
        saved = _by_part(state)
        for (device, part), generator in self._generators.items():
            if (str(device), part) in saved:
                generator.set_state(saved[str(device), part])
            elif state["seed"] is not None:
                generator.manual_seed(self._part_seed(part))

    # Generators can be neither copied nor pickled by every torch version; their states can.
    def __getstate__(self) -> dict[str, object]:
        states = {(str(device), p): g.get_state() for (device, p), g in self._generators.items()}
        first = {device: state for (device, part), state in states.items() if part == FIRST}
        more = {key: state for key, state in states.items() if key[1] != FIRST}
        return {"name": self.name, "seed": self._seed, "states": first, "parts": more}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["name"], state["seed"])  # type: ignore[misc]
        for (device, self.part), saved in _by_part(state).items():
            try:
                generator = self._generator(torch.device(device))
            except RuntimeError:  # saved on a GPU, loaded where there is none
                continue
            generator.set_state(saved)
        self.part = FIRST

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, seed={self._seed})"


def _by_part(state: dict) -> dict[tuple[str, Part], Tensor]:
    """Return the generators' states; what an older droptune saved has those of first passes."""
    first = {(device, FIRST): saved for device, saved in state["states"].items()}
    return first | state.get("parts", {})

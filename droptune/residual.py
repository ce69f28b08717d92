"""Where a forward adds a branch to a shortcut, and which module the branch ends in.

`x + f(x)`: the second operand is computed from the first through a layer with weights, so
without it the first is left, a shortcut (He et al., https://arxiv.org/abs/1512.03385); or the
shortcut is a projection of what the branch is computed from. Nothing is known of classes or
names: each function that is called says which tensors it took and which it gave, and an addition
is looked at from there.

Below calls, which runs the forward.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from droptune.activations import ACTIVATIONS

_ADDS = frozenset("add add_ __add__ __radd__ __iadd__".split())
_COPIES = frozenset("clone contiguous to type_as float double half bfloat16".split())
#: Functions through which noise passes that scales whole samples: f(m * x) = m * f(x), m >= 0.
_PASSING = frozenset(
    "view reshape flatten unflatten transpose swapaxes permute movedim squeeze unsqueeze mT t "
    "contiguous clone to type_as float double half bfloat16 __getitem__ __get__ mul mul_ "
    "multiply div div_ divide neg relu relu_ leaky_relu leaky_relu_ dropout dropout_ dropout1d "
    "dropout2d dropout3d feature_dropout".split()
)
#: Functions that no projection of a shortcut has: it is linear, and takes all that the branch
#: takes. Without the second an RNN by hand, `w(x[:, t]) + u(h)`, would be full of branches.
_NO_PROJECTION = frozenset(function.__name__ for function in ACTIVATIONS) | frozenset(
    "__getitem__ unbind select chunk split narrow index_select gather".split()
)


@dataclass(eq=False)
class Value:
    """A tensor at one moment of a forward; one that is written to becomes another value.

    Attributes:
        number: its place in the order of making.
        maker: name of the function that made it.
        sources: what that function took.
        weighted: whether the function took a matrix of weights.
        shape: of the tensor.
        users: how many functions took it.
        returned: the modules that returned it, and when; the innermost first.
    """

    number: int
    maker: str = ""
    sources: "tuple[Value, ...]" = ()
    weighted: bool = False
    shape: tuple[int, ...] = ()
    users: int = 0
    returned: list[tuple[int, nn.Module]] = field(default_factory=list)


@dataclass(eq=False)
class Addition:
    """A branch that is added to its shortcut.

    Attributes:
        branch: what is added.
        ends: the modules by which it is reached, the last to return first, and the shape of
            what they return.
    """

    branch: Value
    ends: list[tuple[nn.Module, tuple[int, ...]]]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules alone."""
        return [module for module, _ in self.ends]

    @property
    def shapes(self) -> dict[nn.Module, tuple[int, ...]]:
        """What each module returns."""
        return dict(self.ends)


class Tracker:
    """Notes the functions of a forward and the modules that return."""

    def __init__(self) -> None:
        self._values: Any = WeakIdKeyDictionary()
        self._count = 0
        self._sums: list[Value] = []

    def called(self, func: Callable, given: Any, result: Any, weighted: bool = False) -> bool:
        """Note a function's call; tell whether it is a sum of tensors that may hold a branch.

        Args:
            func: what was called.
            given: its arguments, nested.
            result: what it returned, nested.
            weighted: whether it is known to apply weights.
        """
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", "")
        writes = name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))
        made = [
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and (writes or not any(leaf is one for one in tensors))
        ]
        if not made:
            return False
        sources = tuple(dict.fromkeys(self._value(tensor) for tensor in tensors))
        weighted |= any(isinstance(t, nn.Parameter) and t.dim() > 1 for t in tensors)
        for source in sources:
            source.users += 1
        for tensor in made:
            self._values[tensor] = self._new(tensor, name, sources, weighted)
        value = self._values[made[0]]
        if not _is_sum(value) or not made[0].is_floating_point():
            return False
        self._sums.append(value)
        return True

    def left(self, module: nn.Module, output: Any, given: Any) -> None:
        """Note that a module has returned a tensor, or a tuple that begins with one."""
        tensor = output[0] if type(output) is tuple and output else output
        if not isinstance(tensor, Tensor):
            return
        if tensor not in self._values:  # made where no function is seen
            weighted = any(parameter.dim() > 1 for parameter in module.parameters())
            self.called(module.forward, given, output, weighted)
        self._count += 1
        self._value(tensor).returned.append((self._count, module))

    def branches(self) -> list[list[Addition]]:
        """Return the branches of each sum that `called` has told of, each branch once."""
        met: set[Value] = set()
        found = []
        for value in self._sums:
            found.append([one for one in _branches(value) if one.branch not in met])
            met.update(one.branch for one in found[-1])
        return found

    def _value(self, tensor: Tensor) -> Value:
        if tensor not in self._values:
            self._values[tensor] = self._new(tensor)
        return self._values[tensor]

    def _new(self, tensor: Tensor, *made_by: Any) -> Value:
        self._count += 1
        value = Value(self._count, *made_by)
        value.shape = tuple(tensor.shape)
        return value


def pick(additions: Iterable[Addition], calls: Counter[nn.Module]) -> dict[Addition, nn.Module]:
    """Return the module by which each branch is reached; a branch without one is left out.

    It is the last that is called once in a forward; else one whose every call ends a branch,
    and these branches are tied.

    Args:
        additions: of a whole forward.
        calls: how often each module was called.
    """
    additions = list(additions)
    ending = Counter(module for one in additions for module in dict.fromkeys(one.modules))
    found = {}
    for one in additions:
        alone = [module for module in one.modules if calls[module] == 1]
        tied = [module for module in one.modules if calls[module] == ending[module]]
        if alone or tied:
            found[one] = (alone or tied)[0]
    return found


def _is_sum(value: Value) -> bool:
    same = all(source.shape == value.shape for source in value.sources)
    return value.maker in _ADDS and len(value.sources) == 2 and same


def _branches(value: Value) -> Iterator[Addition]:
    """Yield the branches of a sum: the operand that is computed from the other, or its parts.

    If neither is, one that is computed from what the other sums or copies: x in x + f(x) + g(x);
    else one that is computed from what the other projects. One operand at most: where both have
    a claim, neither is a shortcut.
    """
    for shortcuts in (lambda shortcut: {shortcut}, lambda shortcut: set(_terms(shortcut))):
        claims = [
            (branch, way)
            for branch, shortcut in (value.sources, value.sources[::-1])
            if (way := _way(branch, shortcuts(shortcut))) is not None
        ]
        if len(claims) == 1:
            branch, way = claims[0]
            yield from _reached(branch, way, value.number)
        if claims:
            return
    for branch, shortcut in (value.sources, value.sources[::-1]):
        if (way := _beside_projection(branch, shortcut)) is not None:
            yield from _reached(branch, way, value.number)


def _beside_projection(branch: Value, shortcut: Value) -> set[Value] | None:
    """Return the values on the way to a branch from what its shortcut projects, or None.

    A projection is a chain with one layer of weights, and the branch has more (He et al.: 1 x 1
    convolutions where maps change their shape).
    """
    before, layers = _ancestors(branch), 0
    while shortcut not in before:
        made_of = [s for s in shortcut.sources if s.sources or s in before]  # else: parameters
        if shortcut.users > 1 or len(made_of) != 1 or shortcut.maker in _NO_PROJECTION:
            return None
        layers += shortcut.weighted
        shortcut = made_of[0]
    way = _way(branch, {shortcut}) if layers == 1 else None
    return way if way is not None and sum(value.weighted for value in way) > 1 else None


def _ancestors(value: Value) -> set[Value]:
    """Return a value and all that it is computed from."""
    todo, met = [value], {value}
    while todo:
        for source in todo.pop().sources:
            if source not in met:
                met.add(source)
                todo.append(source)
    return met


def _reached(branch: Value, way: set[Value], moment: int) -> Iterator[Addition]:
    """Yield a branch with what it ends in; of a sum without such an end, its terms."""
    ends = list(_ends(branch, way, moment))
    if ends:
        yield Addition(branch, ends)
    elif _is_sum(branch) and branch.users == 1:
        for source in branch.sources:
            if source in way:
                yield from _reached(source, way, branch.number)


def _terms(value: Value) -> Iterator[Value]:
    """Yield a value and what it sums or copies: a branch may leave from there."""
    todo, met = [value], {value}
    while todo:
        yield (value := todo.pop())
        if _is_sum(value) or value.maker in _COPIES:
            todo += [source for source in value.sources if source not in met]
            met.update(value.sources)


def _way(branch: Value, shortcut: set[Value]) -> set[Value] | None:
    """Return the values on the way from a shortcut to a branch; None: it has no weights."""
    oldest = min(value.number for value in shortcut)
    todo, before = [branch], {branch}
    while todo:
        for source in todo.pop().sources:
            if source.number > oldest and source not in before:
                before.add(source)
                todo.append(source)
    way: set[Value] = set()
    for value in sorted(before, key=lambda value: value.number):
        if value not in shortcut and any(s in shortcut or s in way for s in value.sources):
            way.add(value)
    return way if branch in way and any(value.weighted for value in way) else None


def _ends(
    branch: Value, way: set[Value], moment: int
) -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Yield the modules that returned a branch before it was added, and then those further back.

    As far back as noise of whole samples would reach the sum unchanged and nothing else.
    """
    value = branch
    while value.users == 1:
        for when, module in reversed(value.returned):
            if when < moment:
                yield module, value.shape
        sources = [source for source in value.sources if source in way]
        if value.maker not in _PASSING or len(sources) != 1:
            return
        if value.maker.startswith("div") and sources[0] is not value.sources[0]:
            return
        value, moment = sources[0], value.number

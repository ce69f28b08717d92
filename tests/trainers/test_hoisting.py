"""What stands still is computed once; what moves, or is written, at each call."""

import torch
from torch import Tensor

from droptune.trainers.hoisting import Stands
from droptune.trainers.program import trace

aten = torch.ops.aten


def calls(function, args, standing) -> tuple[list, list]:
    """Return the calls made once and those made each time; the counting ones are left in."""
    program = trace(function, args, standing)
    graphs = [made.__self__.graph for made in (program._once, program._each)]
    return tuple([n.target for n in g.nodes if n.op == "call_function"] for g in graphs)


def example(count: int) -> list[Tensor]:
    return [torch.rand(4, 4) for _ in range(count)]


def scaled(x, rate):
    return [x * (1 - rate).reciprocal()]


def test_what_follows_from_values_that_stand_is_computed_once():
    once, each = calls(scaled, example(2), [Stands.NOTHING, Stands.VALUE])
    assert aten.reciprocal.default in once and each == [aten.mul.Tensor]


def test_of_memory_that_stands_only_views_are_taken_once():
    def function(x, weight):
        return [torch.mm(x, weight.t()) * weight.sum()]

    once, each = calls(function, example(2), [Stands.NOTHING, Stands.MEMORY])
    assert once == [aten.t.default]
    assert each == [aten.mm.default, aten.sum.default, aten.mul.Tensor]


def test_other_tensors_are_taken_as_they_come():
    once, each = calls(scaled, example(2), [Stands.NOTHING, Stands.NOTHING])
    assert not once and len(each) == 3


def test_random_numbers_are_drawn_at_each_call():
    def function(x, rate):
        return [x + torch.rand_like(rate) + (rate + 1)]

    once, _ = calls(function, example(2), [Stands.NOTHING, Stands.VALUE])
    assert once == [aten.add.Tensor]


def test_values_that_a_call_writes_do_not_stand():
    def function(x, mean):
        share = mean * 2
        mean.add_(x)
        return [share + x]

    once, _ = calls(function, example(2), [Stands.NOTHING, Stands.VALUE])
    assert not once


def test_a_call_that_writes_into_what_was_given_is_made_each_time():
    def function(x, count):
        before = count + count
        count.add_(1)
        return [before + x]

    once, each = calls(function, example(2), [Stands.NOTHING, Stands.VALUE])
    assert not once and aten.add_.Tensor in each


def test_a_value_into_which_something_moving_is_written_is_made_anew():
    def function(x, mean):
        share = mean * 2
        return [(mean * 3).add_(x), share.add_(1) + x]

    once, each = calls(function, example(2), [Stands.NOTHING, Stands.VALUE])
    assert once == [aten.mul.Tensor, aten.add_.Tensor]
    assert aten.mul.Tensor in each


def test_results_belong_to_the_caller():
    x, rate = example(2)
    program = trace(lambda x, rate: [x + 1, rate * 2], [x, rate], [Stands.NOTHING, Stands.VALUE])
    program(x, rate)[1].zero_()
    assert torch.equal(program(x, rate)[1], rate * 2)


def test_views_of_results_belong_to_the_caller_too():
    x, rate = example(2)

    def function(x, rate):
        return [x + 1, (rate * 2).view(-1)]

    program = trace(function, [x, rate], [Stands.NOTHING, Stands.VALUE])
    program(x, rate)[1].zero_()
    torch.testing.assert_close(program(x, rate)[1], (rate * 2).view(-1))


def test_what_is_written_through_a_part_does_not_stand():
    x, rate = example(2)

    def function(x, rate):
        share = rate * 2
        aten.unsafe_split_with_sizes(share, [1, 3])[0].add_(x[:1])
        return [share + 0]

    program = trace(function, [x, rate], [Stands.NOTHING, Stands.VALUE])
    for _ in range(2):
        torch.testing.assert_close(program(x, rate)[0], function(x, rate)[0])


def test_what_is_read_before_it_is_written_does_not_stand():
    x, rate = example(2)

    def function(x, rate):
        share = rate * 2
        before = share * x
        share.add_(1)
        return [before + share]

    program = trace(function, [x, rate], [Stands.NOTHING, Stands.VALUE])
    for _ in range(2):
        torch.testing.assert_close(program(x, rate)[0], function(x, rate)[0])


def test_a_tensor_that_a_model_keeps_is_read_at_each_call():
    (x,), kept = example(1), torch.ones(4)
    program = trace(lambda x: [x + kept.exp()], [x])
    program(x)
    kept.zero_()
    torch.testing.assert_close(program(x)[0], x + 1)


def test_values_are_taken_anew_where_somebody_wrote_into_them():
    x, rate = example(2)
    program = trace(scaled, [x, rate], [Stands.NOTHING, Stands.VALUE])
    first = program(x, rate)[0]
    rate[1] = 0.5
    assert not torch.equal(program(x, rate)[0], first)
    torch.testing.assert_close(program(x, rate)[0], scaled(x, rate)[0])


def test_what_stood_is_forgotten_when_other_tensors_take_its_place():
    x, rate, other = example(3)
    program = trace(scaled, [x, rate], [Stands.NOTHING, Stands.VALUE])
    program(x, rate)
    program.forget()
    torch.testing.assert_close(program(x, other)[0], scaled(x, other)[0])

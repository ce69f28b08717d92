"""droptune/kinds/noise.py: numbers that are a function of (seed, name, clock) alone."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.kinds import Stream, derive

CPU = torch.device("cpu")


def draw(stream: Stream, n: int = 8) -> list[float]:
    return stream.uniform((n,), CPU).tolist()


def seeded(name: str = "fc", seed: int = 0, clock: int = 0) -> Stream:
    stream = Stream(name)
    stream.seed(seed, clock)
    return stream


@given(seed=st.integers(), parts=st.lists(st.text() | st.integers(), max_size=3))
def test_a_derived_seed_is_one_that_torch_takes(seed, parts):
    assert 0 <= derive(seed, *parts) < 2**63
    torch.Generator().manual_seed(derive(seed, *parts))


def test_a_derived_seed_never_changes_between_versions():
    # Stored runs are repeated from their seeds; this number is part of the file format.
    assert derive(0, "fc", 3) == 3167373507134640950


def test_derived_seeds_differ_in_every_part_and_in_where_parts_end():
    seeds = [derive(0), derive(1), derive(0, "a"), derive(0, "a", "b"), derive(0, "ab")]
    assert len(set(seeds)) == len(seeds)


def test_the_same_seed_name_and_clock_give_the_same_numbers():
    assert draw(seeded()) == draw(seeded())


@pytest.mark.parametrize("other", [{"name": "fd"}, {"seed": 1}, {"clock": 1}])
def test_another_seed_name_or_clock_gives_other_numbers(other):
    assert draw(seeded()) != draw(seeded(**other))


def test_seeding_again_starts_the_numbers_again_on_the_same_generator():
    stream = seeded()
    first, generator = draw(stream), stream._generator(CPU)
    assert draw(stream) != first
    stream.seed(0)
    assert draw(stream) == first
    assert stream._generator(CPU) is generator


def test_a_stream_without_a_seed_follows_torchs_global_seed():
    def numbers(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return draw(Stream("fc"))

    assert numbers(5) == numbers(5) != numbers(6)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream = Stream("fc")
    draw(stream)
    stream.normal((3,), CPU)
    stream.words((3,))
    stream.seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_uniform_numbers_fill_the_unit_interval_and_normal_ones_have_variance_one():
    uniform = seeded().uniform((100_000,), CPU)
    assert 0 <= uniform.min() < 1e-3 and 1 - 1e-3 < uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.005)
    normal = seeded().normal((100_000,), CPU)
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.var().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
@pytest.mark.parametrize("drawn", [True, False])
def test_a_copy_goes_on_where_the_original_is_and_is_independent_of_it(again, drawn):
    stream = seeded()
    if drawn:
        draw(stream)
    twin = again(stream)
    assert draw(twin) == draw(stream)
    draw(twin)
    assert draw(stream) != draw(twin)


def test_a_copy_without_a_seed_still_follows_the_global_one():
    twin = copy.deepcopy(Stream("fc"))
    torch.manual_seed(3)
    expected = draw(Stream("fc"))
    assert draw(twin) == expected


def test_rewinding_gives_the_same_numbers_again_and_keeps_the_generator():
    stream = seeded()
    draw(stream)
    state, generator = stream.__getstate__(), stream._generator(CPU)
    expected = draw(stream)
    stream.rewind(state)
    assert draw(stream) == expected
    assert stream._generator(CPU) is generator


def test_rewinding_to_before_the_first_draw_starts_from_the_seed():
    stream = seeded()
    state = stream.__getstate__()
    expected = draw(stream)
    stream.rewind(state)
    assert draw(stream) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_a_stream_saved_on_a_gpu_can_be_loaded_without_one():
    state = seeded().__getstate__()
    state["states"] = {"cuda:0": torch.zeros(16, dtype=torch.uint8)}
    stream = Stream.__new__(Stream)
    stream.__setstate__(state)
    assert draw(stream) == draw(seeded())


def test_a_stream_says_its_name_and_seed():
    assert repr(Stream("fc", 7)) == "Stream('fc', seed=7)"

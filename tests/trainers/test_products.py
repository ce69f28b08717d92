"""Products by oneDNN: as exact as by MKL, and nobody's setting is changed for good."""

import threading

import pytest
import torch

from droptune.plan import Plan
from droptune.trainers import FusedTrainer, products
from droptune.trainers.products import are_fast, fast_products
from droptune.trainers.program import Program
from droptune.trainers.scored import KeptOutputs

CPU = torch.device("cpu")
pays = pytest.mark.skipif(not are_fast(CPU), reason="MKL's are the products of this processor")


def precision() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pays
def test_the_setting_holds_within_and_is_put_back():
    assert precision() == "none"
    with fast_products(CPU), fast_products(CPU):
        assert precision() == "bf16"
    assert precision() == "none"
    with pytest.raises(ZeroDivisionError), fast_products(CPU):
        raise ZeroDivisionError
    assert precision() == "none"


@pays
def test_threads_share_it():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with fast_products(CPU):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with fast_products(CPU):
        thread.start()
        inside.wait()
    assert precision() == "bf16"
    leave.set()
    thread.join()
    assert precision() == "none"


@pays
def test_what_the_user_set_stands():
    matmul = torch.backends.mkldnn.matmul
    matmul.fp32_precision = "ieee"
    try:
        with fast_products(CPU):
            assert precision() == "ieee"
        assert precision() == "ieee"
    finally:
        matmul.fp32_precision = "none"


@pays
def test_what_holds_for_all_of_torch_stays_inherited():
    torch.backends.fp32_precision = "ieee"
    try:
        with fast_products(CPU):
            assert precision() == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
    assert precision() == "none"


@pays
def test_what_is_set_within_stands():
    try:
        with fast_products(CPU):
            torch.backends.mkldnn.matmul.fp32_precision = "ieee"
        assert precision() == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("inner", [10, 128, 1000])
def test_products_are_those_of_float32(inner):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=draw) for shape in ((4, 64, inner), (4, inner, 32)))
    with fast_products(CPU):
        found = torch.bmm(a, b)
    true = torch.bmm(a.double(), b.double())
    assert (found - true).abs().max() < 1e-6 * inner**0.5 * 5


def test_a_library_of_less_exact_products_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products, "_is_intels", lambda: False)
    exact = torch.bmm

    def rounded(a, b):
        rough = a.dtype == torch.float32 and precision() == "bf16"
        return exact(a.bfloat16(), b.bfloat16()).float() if rough else exact(a, b)

    monkeypatch.setattr(torch, "bmm", rounded)
    assert not products._pays.__wrapped__()


def test_other_processors_and_devices_are_left_alone(monkeypatch):
    assert not are_fast(torch.device("cuda"))
    monkeypatch.setattr(products, "_is_intels", lambda: True)
    assert not products._pays.__wrapped__()
    monkeypatch.setattr(products, "_is_intels", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not products._pays.__wrapped__()


@pays
def test_only_droptunes_own_products_are_made_so(make_task, make_data, monkeypatch):
    seen, inside = [], []
    run, scores = Program.__call__, KeptOutputs.all_scores

    def loss(output, target):
        seen.append(precision())
        return torch.nn.functional.cross_entropy(output, target)

    monkeypatch.setattr(
        KeptOutputs, "all_scores", lambda *args: seen.append(precision()) or scores(*args)
    )
    monkeypatch.setattr(Program, "__call__", lambda *a: inside.append(precision()) or run(*a))
    trainer = FusedTrainer(make_task(make_data(rows=40), loss=loss), 1)
    trainer.begin(0)
    trainer.start(0, Plan.none())
    trainer.epoch()
    assert set(seen) == {"none"} and set(inside) == {"bf16"}

"""The lock of a study: beside the file, whatever the URL and wherever the process stands."""

import pytest

from droptune.errors import TransientError
from droptune.store import Store, server


@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite:///file:{}?uri=true"])
def test_the_lock_is_beside_the_file(tmp_path, monkeypatch, url):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with Store(url.format(tmp_path / "d.db")) as store, store.exclusive("mine") as still:
        still()
        assert (tmp_path / "d.db-lock").is_file()
    assert not list(elsewhere.iterdir())


def test_a_lock_that_a_server_has_lost_is_noticed_and_can_be_left(postgres):
    url = postgres.fresh()
    with Store(url) as store:
        with store.exclusive("mine") as still:
            still()
            postgres.cut(url)
            with pytest.raises(TransientError):
                still()
        with store.exclusive("mine") as still:
            still()


def test_who_holds_the_lock_of_a_server_and_hangs_loses_it(postgres, monkeypatch):
    monkeypatch.setattr(server, "LOCK_SECONDS", 1)
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    url = postgres.fresh()
    with Store(url) as hangs, Store(url) as waits, hangs.exclusive("mine") as still:
        with waits.exclusive("mine") as others:
            others()
            with pytest.raises(TransientError):
                still()

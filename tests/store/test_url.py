"""URLs: passwords never show, files are found, drivers are explained."""

import pytest

from droptune.errors import StoreError
from droptune.store import Store
from droptune.store.url import driver_url, explain, hide, sqlite_path

SECRET = "hunter2"
URLS = [
    f"postgresql://ann:{SECRET}@host/name",
    f"postgresql+psycopg://ann:{SECRET}@host:5432/name?sslmode=require",
    f"postgresql://ann:a@b/c{SECRET}@host/name",
    f"postgresql://:{SECRET}@host/name",
    f"postgresql://host/name?user=ann&password={SECRET}",
    f"postgresql://an/n:{SECRET} {SECRET}@host/name",
    f"postgres//ann:{SECRET}@host/name",
    f"ann:{SECRET}@host",
    f"nonsense://ann:{SECRET}@host:port/name",
    f"postgresql://ann:{SECRET}@host:port/name",
]


@pytest.mark.parametrize("url", URLS)
def test_a_password_is_hidden(url):
    assert SECRET not in hide(url)
    assert "***" in hide(url)


@pytest.mark.parametrize("url", URLS)
def test_no_error_at_opening_shows_the_password(url):
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("url", [url for url in URLS if f":{SECRET}@" in url or "=" in url])
def test_no_words_of_a_driver_show_the_password(url):
    error = RuntimeError(f"cannot connect as ann with {SECRET} to {url}\nhint: {SECRET}")
    assert SECRET not in str(explain(error, url))


def test_a_password_is_hidden_in_its_decoded_form_too():
    error = explain(RuntimeError("bad login: p@ss"), "postgresql://ann:p%40ss@host/name")
    assert "p@ss" not in str(error)


@pytest.mark.parametrize(
    "url", ["sqlite:///droptune.db", "sqlite:////data/a:b@c.db", "postgresql://ann@host:5432/name"]
)
def test_a_url_without_password_is_shown_as_it_is(url):
    assert hide(url) == url


def test_a_store_shows_its_url_without_password(url):
    with Store(url) as store:
        assert str(store) == url
        assert repr(store) == f"Store({url!r})"
        store.url_hidden = hide(URLS[0])
        assert SECRET not in f"{store} {store!r}"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///droptune.db", "droptune.db"),
        ("sqlite:////data/my study.db", "/data/my study.db"),
        ("sqlite+pysqlite:///x.db", "x.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:x.db?mode=ro&uri=true", None),
        ("postgresql://host/name", None),
    ],
)
def test_the_file_of_a_url(url, path):
    found = sqlite_path(url)
    assert (None if found is None else str(found)) == path


def test_what_a_driver_says_that_we_do_not_know_is_passed_on_in_one_line():
    error = explain(RuntimeError("\n strange things\nand more"), "sqlite:///x.db")
    assert str(error) == "sqlite:///x.db cannot be used: strange things"


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://ann@host/name", "postgresql+psycopg://ann@host/name"),
        ("postgres://ann@host/name", "postgresql+psycopg://ann@host/name"),
        ("postgresql+psycopg2://ann@host/name", "postgresql+psycopg2://ann@host/name"),
        ("sqlite:///postgres.db", "sqlite:///postgres.db"),
        ("postgres", "postgres"),
    ],
)
def test_a_url_gets_the_driver_that_droptune_installs(url, driver):
    assert driver_url(url) == driver


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ("FATAL: password authentication failed for user 'ann'", "refuses this user or password"),
        ("FATAL: role 'ann' does not exist", "refuses this user, who does not exist"),
        ("FATAL: database 'x' does not exist", "does not exist on that server"),
        ("permission denied for schema public", "let its owner GRANT the rights"),
        ("cannot execute INSERT in a read-only transaction", "is read-only (a standby"),
        ("FATAL: sorry, too many clients already", "takes no more connections"),
        ("canceling statement due to lock timeout", "is locked by another program"),
        ("could not extend file: No space left on device", "the disk is full"),
        ("relation 'x' does not exist", "cannot be used: relation 'x' does not exist"),
    ],
)
def test_what_a_server_says_is_put_in_words(said, ours):
    error = explain(RuntimeError(f"{said}\nmore"), "postgresql://ann@host/x")
    assert str(error).startswith("postgresql://ann@host/x ")
    assert ours in str(error)


def test_a_missing_driver_names_the_extra_to_install(monkeypatch):
    def missing(*args, **options):
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr("droptune.store.engine.create_engine", missing)
    with pytest.raises(StoreError, match=r"pip install 'droptune\[postgresql\]'"):
        Store("postgresql://ann@host/name")

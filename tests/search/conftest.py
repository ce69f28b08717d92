import pytest

from droptune.search import Search
from droptune.store.engine import prepare_engine
from tests.search.tiny import TinySpace


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'd.db'}"


@pytest.fixture
def search(url):
    """Open searches on one store, and close them all at the end."""
    opened = []

    def open_search(name="s", space=None, **options):
        options = {
            "direction": "minimize",
            "epochs": 27,
            "prepare_engine": prepare_engine,
        } | options
        found = Search(options.pop("url", url), name, space or TinySpace(), **options)
        opened.append(found)
        return found

    yield open_search
    for found in opened:
        found.close()

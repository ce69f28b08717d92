"""Optuna's own dashboard on the trials of a store, served to this machine alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from droptune.errors import StudyError
from droptune.record import open_storage
from droptune.store import prepare_engine

HOST = "127.0.0.1"


class _Server(ThreadingMixIn, WSGIServer):
    """Answers requests side by side; what is under way does not hold up the end."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line for every request would bury the address."""


@contextmanager
def dashboard(url: str, port: int) -> Iterator[WSGIServer]:
    """Open the dashboard; `serve_forever` of what it yields answers until it is interrupted.

    Runs in this process: no command line of another one shows the URL with its password.

    Args:
        url: of a database that is there.
        port: to listen on, on this machine alone; 0: a free one.

    Raises:
        StudyError: optuna-dashboard is not installed, or the port is taken.
        StoreError: the database cannot be opened.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise StudyError(
            "the dashboard is optuna-dashboard, which is not installed; "
            "run `pip install 'droptune[dashboard]'`"
        ) from None
    storage = open_storage(url, prepare_engine)
    try:
        try:
            server = make_server(HOST, port, wsgi(storage), _Server, _Quiet)
        except OSError as error:
            raise StudyError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); "
                "give another with --port, or 0 for a free one"
            ) from None
        with server:
            yield server
    finally:
        storage.remove_session()
        storage.engine.dispose()

"""Runs the migration scripts on a connection; Alembic executes this file.

`droptune.store.migrate` hands its connection over. A developer gives a URL instead:

    alembic -x url=sqlite:///x.db revision --autogenerate --rev-id 0002 -m "add note"
"""

from alembic import context
from sqlalchemy import create_engine

from droptune.store.engine import prepare_engine
from droptune.store.schema import Base


def ours(name: str | None, type_: str, parent_names: object) -> bool:
    """Say whether a thing in the database is droptune's; Optuna's tables are left alone."""
    return type_ != "table" or name in Base.metadata.tables


def run(connection: object) -> None:
    """Run the scripts in the transaction of `connection`."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=ours,
        version_table="droptune_version",
        render_as_batch=True,  # SQLite cannot alter a column; batch mode copies the table
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = context.get_x_argument(as_dictionary=True).get("url", "sqlite://")
    with prepare_engine(create_engine(url)).begin() as opened:
        run(opened)

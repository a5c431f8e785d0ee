"""The database itself, for the commands that need no service and no key."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.commands.exits import FAILED
from service.commands.show import say
from service.config import get_settings
from service.db import DATABASE_AWAY, Database


@contextmanager
def opened(*, read_only: bool = False) -> Iterator[Session]:
    """A transaction on the database of the settings; ends the command when that cannot be used."""
    database = Database(get_settings().database)
    try:
        with database.session_scope(read_only=read_only) as session:
            yield session
    except SQLAlchemyError as error:
        say(f"The database cannot be used: {_remedy(error)}.")
        raise typer.Exit(FAILED) from error
    finally:
        database.dispose()


def _remedy(error: SQLAlchemyError) -> str:
    if isinstance(error, DATABASE_AWAY) and "no such table" not in str(error):
        return "it does not answer; see that it runs and that SECATEUR_DATABASE_URL names it, then start again"
    return "it lacks tables of this release; run `secateur migrate` first"

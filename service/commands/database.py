"""The database itself, for the commands that need no service and no key."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.commands.exits import FAILED
from service.commands.show import say
from service.config import get_settings
from service.db import Database


@contextmanager
def opened(*, read_only: bool = False) -> Iterator[Session]:
    """A transaction on the database of the settings; ends the command when that cannot be used."""
    database = Database(get_settings().database)
    try:
        with database.session_scope(read_only=read_only) as session:
            yield session
    except SQLAlchemyError as error:
        say("The database cannot be used: check SECATEUR_DATABASE_URL, and run `secateur migrate` first.")
        raise typer.Exit(FAILED) from error
    finally:
        database.dispose()

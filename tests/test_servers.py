"""The suite's own servers: no killed test run may leave one behind."""

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.processes import gone, wait_for
from tests.servers import PostgreSQL

ROOT = Path(__file__).parents[1]
SUITE = """
import time
from tests.servers import postgresql, valkey
with postgresql() as database, valkey() as broker:
    print(database.pid, broker.process.pid, flush=True)
    time.sleep(600)
"""


def test_killing_the_suite_leaves_no_server() -> None:
    suite = subprocess.Popen([sys.executable, "-c", SUITE], cwd=ROOT, stdout=subprocess.PIPE)
    assert suite.stdout is not None
    servers = [int(pid) for pid in suite.stdout.readline().split()]
    family = [*servers, *(child.pid for pid in servers for child in psutil.Process(pid).children(recursive=True))]
    assert len(family) > 3 and not any(gone(pid) for pid in family)
    suite.kill()
    suite.wait()
    suite.stdout.close()
    wait_for(lambda: all(gone(pid) for pid in family), seconds=10)


def test_databases_are_copies_of_the_template(postgresql_server: PostgreSQL, postgresql_template: str) -> None:
    name = postgresql_server.create(postgresql_template)
    with psycopg.connect(postgresql_server.url(name).replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    postgresql_server.drop(name)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgresql_server.url(name).replace("+psycopg", ""))

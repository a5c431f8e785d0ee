"""SQLite under several processes that are killed while they commit: the file stays whole, and keeps what it said."""

import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from service.db import Database, journal_mode
from service.processes import start
from service.tables import Worker
from tests.processes import wait_for

WRITERS = 4
KILLS = 6
SEED = 11
WRITER = """
import itertools, sys, time
from service.db import Database
from service.tables import Worker
database = Database(sys.argv[1])
for number in itertools.count():
    name = f"{sys.argv[2]}-{number}"
    with database.session_scope() as session:
        session.add(Worker(name=name, devices=[], sandbox="x" * 2000, seen_until=0.0))
    print(name, flush=True)
    time.sleep(0.01)  # SQLite knows no turns: others would wait long
"""
ROOT = Path(__file__).parents[2]


class Writer:
    """A process that adds rows, one commit each, and says so after the commit."""

    def __init__(self, url: str, name: str) -> None:
        self._process = start([sys.executable, "-c", WRITER, url, name], cwd=ROOT, stdout=subprocess.PIPE)
        self.acknowledged: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self.acknowledged.append(line.decode().strip())

    def kill_soon(self, seconds: float) -> None:
        """SIGKILL so long after its first word: at some place in a commit."""
        wait_for(lambda: bool(self.acknowledged), seconds=60)
        time.sleep(seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL; what it has said is read to the end."""
        self._process.kill()
        assert self._process.wait() == -9, "it had ended before"
        self._reader.join()


def test_killed_writers_leave_a_whole_file_with_all_that_they_acknowledged(database_url: str) -> None:
    print(f"seed {SEED}")
    chance, database = random.Random(SEED), Database(database_url)
    writers = [Writer(database_url, f"w{number}") for number in range(WRITERS)]
    acknowledged: list[str] = []
    try:
        for number in range(KILLS):
            writer = writers.pop(chance.randrange(WRITERS))
            writer.kill_soon(chance.uniform(0, 0.05))
            acknowledged += writer.acknowledged
            assert_whole(database_url)
            writers.append(Writer(database_url, f"w{WRITERS + number}"))
    finally:
        for writer in writers:
            writer.kill()
            acknowledged += writer.acknowledged
    assert_whole(database_url)
    with database.session_scope(read_only=True) as session:
        stored = set(session.scalars(select(Worker.name)))
    database.dispose()
    assert set(acknowledged) <= stored
    assert len(stored) <= len(acknowledged) + KILLS + WRITERS, "one commit each may have lost its word"


def assert_whole(url: str) -> None:
    """The file is sound, and journalled as this version of SQLite can do it safely."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert file.execute("PRAGMA journal_mode").fetchone() == (journal_mode(sqlite3.sqlite_version_info).lower(),)

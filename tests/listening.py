"""The API of this process on a port of the loopback, served as `secateur api` serves it."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from service.app import create_app
from service.auth import new_plaintext
from service.config import Settings
from service.serving import options
from tests.servers import free_port


@dataclass(frozen=True)
class Listening:
    """An application and where it listens."""

    app: FastAPI
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def standalone(folder: Path, template: Path, **changes: Any) -> Settings:
    """Settings of a service below `folder` that several tests share: SQLite, an admin key, no broker."""
    shutil.copyfile(template, folder / "secateur.db")
    return Settings(
        data_dir=folder / "data",
        database_url=SecretStr(f"sqlite:///{folder / 'secateur.db'}"),
        broker_url=SecretStr("redis://127.0.0.1:1/0"),
        admin_key=SecretStr(new_plaintext()),
        disk_reserve_bytes=1 << 20,
    ).model_copy(update=changes)


def bearer(settings: Settings) -> dict[str, str]:
    """The header with the settings' admin key."""
    assert settings.admin_key is not None
    return {"Authorization": f"Bearer {settings.admin_key.get_secret_value()}"}


@contextmanager
def listening(settings: Settings) -> Iterator[Listening]:
    """A running API for the length of the block. Logs stay with the test."""
    settings = settings.model_copy(update={"port": free_port()})
    app = create_app(settings)
    config = uvicorn.Config(app, **options(settings) | {"log_config": None, "timeout_graceful_shutdown": 1})
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield Listening(app, settings.port)
    finally:
        server.should_exit = True
        thread.join()

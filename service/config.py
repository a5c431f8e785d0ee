"""Settings: where things are. The only module that reads the environment.

A knob that changes a job's result belongs to its spec, never here.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.logs import LogFormat


class Settings(BaseSettings):
    """Read from `SECATEUR_*` variables; each has a default that works on one machine."""

    model_config = SettingsConfigDict(env_prefix="SECATEUR_", frozen=True)

    data_dir: Path = Field(Path("secateur-data"), description="state of a one-machine service")
    database_url: SecretStr | None = Field(None, description="default: SQLite in data_dir")
    broker_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey")
    storage_url: str | None = Field(
        None,
        description="file:///path, or s3://bucket/prefix?endpoint=…&region=… with the usual AWS_* variables; "
        "default: data_dir/storage",
    )
    presigned_downloads: bool = Field(
        False, description="single files are fetched from the object store itself, which clients must then reach"
    )
    scratch_dir: Path | None = Field(
        None,
        description="unfinished uploads and job folders, the same for all API processes; default: data_dir/scratch",
    )

    host: str = "127.0.0.1"
    port: int = 8400
    public_url: str | None = Field(None, description="base of links in answers; default: as the request came")
    allowed_hosts: str | None = Field(
        None,
        description="names that requests may be for, with commas between; * is any. Default: public_url's, and this "
        "machine's own while host is one of them, else any",
    )
    trusted_proxies: str = Field(
        "", description="addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed, with commas"
    )
    admin_key: SecretStr | None = Field(None, description="installed as an admin key at the start of the API")

    header_timeout_seconds: float = Field(10.0, gt=0, description="for the address and headers of a request to come")
    body_timeout_seconds: float = Field(
        30.0, gt=0, description="a body that brings less than 1 KiB a second over this time is given up"
    )
    answer_timeout_seconds: float = Field(
        120.0, gt=0, description="a client that takes nothing of its answer for this long is dropped"
    )
    max_header_bytes: int = Field(64 << 10, ge=1024, description="of a request's address and headers together")
    max_connections: int = Field(800, ge=1, description="per API process, which needs some more open files than that")
    max_connections_per_address: int = Field(
        400, ge=1, description="behind a proxy all clients have its address: give it what the proxy may open"
    )

    max_json_bytes: int = 1 << 20
    max_upload_bytes: int | None = Field(None, description="default: free disk less disk_reserve_bytes")
    disk_reserve_bytes: int = 2 << 30
    scrub_bytes_per_second: int | None = Field(
        None,
        ge=0,
        description="how fast stored files are read through to find damage; 0: never. Default: 8 MiB in a folder, 0 in "
        "an object store, which looks after its own",
    )
    upload_expiry_seconds: float = Field(
        24 * 3600.0, description="an unfinished upload is dropped this long after its last byte"
    )

    quota_stored_bytes: int | None = Field(
        None, ge=0, description="per tenant: models, those still uploading, data sets and artifacts; default: no limit"
    )
    quota_queued_jobs: int | None = Field(None, ge=0, description="per tenant; default: no limit")
    quota_running_jobs: int | None = Field(
        None, ge=0, description="per tenant: more of its jobs wait in the queue; default: no limit"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="per key and API process; default: no limit. A tenant's own limits come before these"
    )
    failed_authentications_per_minute: int = Field(
        60, ge=1, description="per address and API process: wrong keys beyond it are answered 429"
    )

    lease_seconds: float = Field(30.0, description="a running job whose lease ran out is given to another worker")
    heartbeat_seconds: float = Field(2.0, description="how often a worker renews its lease and looks for a cancel")
    reconcile_seconds: float = Field(5.0, description="how often lost jobs are looked for")
    deaf_seconds: float = Field(
        30.0, gt=0, description="an idle worker that hears nothing of what is rung for leaves, to be started again"
    )
    max_attempts: int = 3
    checkpoint_seconds: float = Field(60.0, description="how often a job that trains is saved, to go on from there")
    checkpoint_expiry_seconds: float = Field(
        7 * 24 * 3600.0, gt=0, description="what a failed job saved is kept this long after its end"
    )
    checkpoint_grace_seconds: float = Field(
        30.0, description="for saving a job once more before it is paused or its worker leaves"
    )
    sandbox: Literal["auto", "bubblewrap", "process"] = Field(
        "auto",
        description="of jobs: bubblewrap, or no worker starts; auto: processes alone where that is missing",
    )
    job_memory_bytes: int | None = Field(
        None, ge=1 << 28, description="of one job process; default: the machine's or container's, less a reserve"
    )
    kill_grace_seconds: float = Field(4.0, description="between SIGTERM and SIGKILL of an engine")
    webhook_allow_private: bool = Field(
        False, description="webhooks may go to http and to private addresses: for networks of one's own, and tests"
    )
    webhook_seconds: float = Field(1.0, description="how often due webhooks are looked for")
    webhook_timeout_seconds: float = Field(15.0, description="for one webhook, from the look-up of its host's name on")
    webhook_retry_seconds: list[float] = Field(
        [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400], description="pauses between tries of a webhook"
    )
    log_level: str = "INFO"
    log_format: LogFormat = Field("text", description="text or json: one JSON object per line")
    cuda_visible_devices: str | None = Field(
        None, validation_alias="CUDA_VISIBLE_DEVICES", description="which GPUs a worker's jobs see; read without prefix"
    )

    url: str | None = Field(None, description="client: the service to talk to")
    api_key: SecretStr | None = Field(None, description="client: the key to send")

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database, with its password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.absolute() / 'secateur.db'}"

    @property
    def broker(self) -> str:
        """URL of the broker, with its password."""
        return self.broker_url.get_secret_value()

    @property
    def storage(self) -> str:
        """URL of the storage."""
        return self.storage_url or f"file://{self.data_dir.absolute() / 'storage'}"

    @property
    def scrub_rate(self) -> int:
        """Bytes a second at which stored files are read through; 0 is never."""
        if self.scrub_bytes_per_second is not None:
            return self.scrub_bytes_per_second
        return 8 << 20 if self.storage.startswith("file:") else 0

    @property
    def scratch(self) -> Path:
        """Folder for unfinished uploads and job folders, best on the storage's file system."""
        return (self.scratch_dir or self.data_dir / "scratch").absolute()


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()


def environment_of(settings: Settings) -> dict[str, str]:
    """This process's environment, changed so that a child process reads the same settings."""
    environment = dict(os.environ)
    for name in settings.model_fields_set - {"cuda_visible_devices"}:
        value = getattr(settings, name)
        if value is not None:
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            environment[f"SECATEUR_{name.upper()}"] = str(plain)
    return environment


def adopt(settings: Settings) -> None:
    """Make these the settings of this process, and of those that it starts from now on."""
    os.environ.update(environment_of(settings))
    get_settings.cache_clear()

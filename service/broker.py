"""The doorbell: a Celery message on Redis that carries one job id and nothing else.

It means that there is work: whoever hears it claims the job whose turn it is, and the id tells the reconciler alone for
which jobs was rung. A lost, doubled or late message changes nothing: the reconciler rings again.
"""

import json
import logging
import socket
import time
from typing import Any

from celery import Celery
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

log = logging.getLogger(__name__)

ENTRY = "secateur.run_job"
QUEUE = "secateur.jobs"
MOST_RINGS = 100
"""That may lie unheard: each wakes one idle worker, and a worker that is awake goes on until nothing is queued."""
ENOUGH_SECONDS = 0.5
"""How long that is believed: those that are rung for find what comes meanwhile."""
QUIET_SECONDS = 2.0
"""After a failed ring the next ones are left to the reconciler, so that submits stay fast while the broker is away."""

CELERY_SETTINGS: dict[str, Any] = {
    "task_default_queue": QUEUE,
    "task_acks_late": False,
    "task_ignore_result": True,
    "task_publish_retry": False,
    "task_reject_on_worker_lost": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    "worker_enable_remote_control": False,  # whoever can write to the broker could end workers with it
    "worker_pool": "prefork",
    "worker_concurrency": 1,
    "worker_pool_start_method": "spawn",
    "worker_max_tasks_per_child": 100,  # the engine is a process of its own, so this one stays small and clean
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
}
_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # macOS lacks the first
}
_TRANSPORT: dict[str, Any] = {
    "visibility_timeout": 7 * 86400,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "socket_keepalive_options": _KEEPALIVE,
    "health_check_interval": 5,
}


def make_celery(url: str, **transport: Any) -> Celery:
    """A Celery application on the Redis or Valkey at `url`; `transport` overrides kombu's transport options."""
    app = Celery("secateur", broker=url, set_as_current=False)
    app.conf.update(CELERY_SETTINGS, broker_transport_options={**_TRANSPORT, **transport})
    return app


class Broker:
    """The sending side: rings for jobs and tells which rings were not yet heard. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._celery = make_celery(url, socket_timeout=1, socket_connect_timeout=1, max_retries=0)
        # kombu writes a Unix socket as redis+socket://…?virtual_host=N, redis-py as unix://…?db=N
        plain = url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=", 1)
        self._redis = Redis.from_url(plain, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        self._quiet_until = 0.0

    def ring(self, job_id: str) -> None:
        """Tell the workers that a job is queued, unless enough rings wake them already. Best effort: never raises."""
        if time.monotonic() < self._quiet_until:
            return
        try:
            if int(self._redis.llen(QUEUE)) >= MOST_RINGS:
                self._quiet_until = time.monotonic() + ENOUGH_SECONDS
                return
            self._celery.send_task(ENTRY, args=[job_id], task_id=job_id, retry=False)
        except Exception as error:  # kombu wraps some of redis-py's errors and lets others through
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("The broker is away; the reconciler will ring again: %s", type(error).__name__)

    def waiting(self) -> set[str] | None:
        """Ids of the jobs whose ring no worker has taken yet; None when the broker cannot be asked."""
        try:
            messages = self._redis.lrange(QUEUE, 0, -1)
        except RedisError:
            return None
        return {_job_id(message) for message in messages} - {""}

    def ping(self) -> bool:
        """Whether the broker answers."""
        try:
            return bool(self._redis.ping())
        except RedisError:
            return False

    def close(self) -> None:
        """Close every connection."""
        self._redis.close()
        self._celery.close()


def _job_id(message: bytes | str) -> str:
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return ""

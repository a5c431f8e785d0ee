"""The doorbell: a Celery message on Redis that carries one job id and nothing else.

A lost, doubled or late message changes nothing: workers claim from the jobs table and the reconciler rings again.
"""

import json
import logging
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
HIGHEST_PRIORITY = 9
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
_TRANSPORT: dict[str, Any] = {
    "visibility_timeout": 7 * 86400,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "priority_steps": list(range(HIGHEST_PRIORITY + 1)),
    "queue_order_strategy": "priority",
    "sep": ":",
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

    def ring(self, job_id: str, priority: int = 0) -> None:
        """Tell the workers that a job is queued; `priority` 9 is heard first. Best effort: never raises."""
        if time.monotonic() < self._quiet_until:
            return
        try:
            self._celery.send_task(
                ENTRY, args=[job_id], task_id=job_id, priority=HIGHEST_PRIORITY - priority, retry=False
            )
        except Exception as error:  # kombu wraps some of redis-py's errors and lets others through
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("The broker is away; the reconciler will ring again: %s", type(error).__name__)

    def waiting(self) -> set[str] | None:
        """Ids of the jobs whose ring no worker has taken yet; None when the broker cannot be asked."""
        queues = [QUEUE, *(f"{QUEUE}:{step}" for step in range(1, HIGHEST_PRIORITY + 1))]
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.lrange(queue, 0, -1)
                lists = pipe.execute()
        except RedisError:
            return None
        return {_job_id(message) for messages in lists for message in messages} - {""}

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


def _job_id(message: bytes) -> str:
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return ""

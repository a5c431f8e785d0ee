"""Python imports this at the start of a process that has the folder on its path: its clock is then off by what the
file says that `CLOCK_FILE` names, in seconds, and can be set while it runs. The monotonic clock stays as it is."""

import datetime
import os
import time
from pathlib import Path

_file = Path(os.environ["CLOCK_FILE"])
_time_ns, _real = time.time_ns, datetime.datetime


def _now_ns() -> int:
    return _time_ns() + int(_file.read_text()) * 10**9


class _Lenient(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real)


class _Moved(datetime.datetime, metaclass=_Lenient):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return _real.fromtimestamp(_now_ns() / 1e9, tz)


_Moved.__name__ = _Moved.__qualname__ = "datetime"
_Moved.__module__ = "datetime"  # by these names database drivers know how to write it
datetime.datetime = _Moved  # type: ignore[misc]
time.time_ns = _now_ns
time.time = lambda: _now_ns() / 1e9

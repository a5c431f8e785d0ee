"""How a job process is confined.

`bubblewrap`, where it can be had and a self-test found no way out of it: namespaces without network, without the host's
files and processes, and a filter on system calls. Otherwise `process`: a session of its own. Either way a clean
environment and limits on what it takes.
"""

from workers.sandbox.bubblewrap import SandboxMissing
from workers.sandbox.confinement import environment, level_of
from workers.sandbox.engine import Engine
from workers.sandbox.limits import is_full, memory_of
from workers.sandbox.selftest import settle

__all__ = ["Engine", "SandboxMissing", "environment", "is_full", "level_of", "memory_of", "settle"]

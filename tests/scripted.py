"""`python -m tests.scripted`: a worker as any other, whose engine does what its job's metadata says.

For tests to which the inside of the engine does not matter: that of `workers/fake_engine.py` starts in a tenth of a
second.
"""

import os
from functools import partial

from tests.workers.conftest import FAKE_ENGINE
from workers import supervisor
from workers.app import app

# Also in the job's process, which Celery spawns and which runs this module again.
supervisor.run = partial(supervisor.run, engine_command=FAKE_ENGINE)

if __name__ == "__main__":
    app.worker_main(
        ["worker", "-O", "fair", "--without-mingle", "--without-gossip", f"--hostname=scripted-{os.getpid()}@%h"]
    )

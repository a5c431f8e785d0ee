"""What refusing costs: everything hostile, one after the other, in a process with little memory."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_whole_corpus_is_refused_within_512_mib_and_5_seconds_each(tmp_path: Path, sqlite_template: Path) -> None:
    command = [sys.executable, "-m", "tests.security.limited", str(tmp_path), str(sqlite_template)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["requests"] > 300
    assert figures["peak_bytes"] < 512 << 20
    assert figures["slowest_seconds"] < 5

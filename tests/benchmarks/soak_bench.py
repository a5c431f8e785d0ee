"""Whether refusing wears the service out: `python -m tests.benchmarks.soak_bench [--minutes N]`.

Sends everything hostile that the tests know to a real API process, again and again, and samples the process after each
round: open files, threads, memory. Prints the slope of each, in percent of its mean per hour, by least squares over the
second half of the rounds: in the first caches and pools fill. The target is 1 % an hour; a few minutes tell less of a
slope than two hours, so its standard error stands beside it.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.load_site import LoadSite, load, load_site
from tests.cutting import memory
from tests.security.limited import answers

TARGET = 1.0
FEWEST_ROUNDS = 8


class Sample(NamedTuple):
    """The API process after one round."""

    seconds: float
    files: int
    threads: int
    memory: int


def main() -> None:
    """Soak for some minutes, then print the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="printed; what is sent is the same in every round")
    arguments = parser.parse_args()
    with load_site(arguments.seed) as site:
        samples, asked, slowest = soak(site, 60 * arguments.minutes)
    print(f"{len(samples)} rounds, {asked} requests refused, the slowest in {slowest:.2f} s; {load()}")
    settled = samples[len(samples) // 2 :]
    times = [sample.seconds for sample in settled]
    for name in ("files", "threads", "memory"):
        values = [float(getattr(sample, name)) for sample in settled]
        percent, error = slope(times, values)
        first, last = getattr(samples[0], name), getattr(samples[-1], name)
        print(f"{name:8} {first:>12,} to {last:>12,}, most {max(getattr(s, name) for s in samples):>12,}; ", end="")
        print(f"slope {percent:+.2f} ± {error:.2f} % an hour, target {TARGET:.0f} %")


def soak(site: LoadSite, seconds: float) -> tuple[list[Sample], int, float]:
    """A sample per round, how much was asked, and the slowest answer in seconds."""
    assert site.live.api is not None
    pid, client = site.live.api.pid, site.live.client
    samples: list[Sample] = []
    asked, slowest, begun = 0, 0.0, time.monotonic()
    while time.monotonic() - begun < seconds or len(samples) < FEWEST_ROUNDS:
        started = time.monotonic()
        hostile: Any = client
        for answer in answers(hostile, site.folder):
            assert 400 <= answer.status_code < 500, answer.text
            slowest, started, asked = max(slowest, time.monotonic() - started), time.monotonic(), asked + 1
        for model in client.get("/v1/models", params={"limit": 100}).json()["data"]:
            if model["state"] == "uploading":  # the one that some of the requests are about
                client.delete(f"/v1/models/{model['id']}").raise_for_status()
        samples.append(sample_of(pid, time.monotonic() - begun))
    return samples, asked, slowest


def sample_of(pid: int, seconds: float) -> Sample:
    """What a process holds now."""
    process = Path(f"/proc/{pid}")
    files, threads = (len(list((process / kind).iterdir())) for kind in ("fd", "task"))
    return Sample(seconds, files, threads, memory(pid)[0])


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Growth in percent of the mean per hour, and its standard error, by least squares."""
    mean_time, mean = statistics.fmean(times), statistics.fmean(values)
    spread = sum((moment - mean_time) ** 2 for moment in times)
    gradient = sum((moment - mean_time) * (value - mean) for moment, value in zip(times, values, strict=True)) / spread
    pairs = zip(times, values, strict=True)
    residual = sum((value - mean - gradient * (moment - mean_time)) ** 2 for moment, value in pairs)
    error = math.sqrt(residual / max(1, len(times) - 2) / spread)
    return 3600 * 100 * gradient / mean, 3600 * 100 * error / mean


if __name__ == "__main__":
    main()

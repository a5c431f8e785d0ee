"""What points of curves cost the training that reports them: `python -m tests.benchmarks.metrics_bench [--points N]`.

A process trains a small network step by step, in turn with and without reporting so many points a second; its lines go
through the pipe, the relay and the lease of a real worker into PostgreSQL that flushes every commit, each heartbeat in
one transaction. Prints the median step with and without points and their ratio, by the clock and by the processor time
of the process that trains (which others on the machine cannot lengthen), and how many of the points are stored.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from service import jobs
from service.config import Settings
from service.processes import start
from service.tables import MetricPoint
from tests.benchmarks.load_site import LoadSite, load, load_site
from workers.lease import Lease
from workers.relay import Lines, Relay

BLOCK_SECONDS = 2.0
TARGET = 1.01


def main() -> None:
    """Measure, or be the process that trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help="a second, while they are reported")
    parser.add_argument(
        "--blocks", type=int, default=20, help=f"of {BLOCK_SECONDS:.0f} s each, every other with points"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments)
        return
    with load_site(arguments.seed) as site:
        measure(site, arguments)


def measure(site: LoadSite, arguments: Any) -> None:
    """Run the training as the child of a worker that has claimed a job for it."""
    site.created(site.order())
    with site.database.session_scope() as session:
        held = jobs.claim_next(session, "bench", site.live.settings.lease_seconds)
    assert held is not None
    relay, settings = Relay(), site.live.settings
    told = ["--points", str(arguments.points), "--blocks", str(arguments.blocks), "--seed", str(arguments.seed)]
    command = [sys.executable, "-m", "tests.benchmarks.metrics_bench", "--train", *told]
    figures = site.folder / "figures.json"
    with figures.open("wb") as output, beating(site, relay, held, settings):
        reading, writing = os.pipe()
        child = start(
            [*command], stdout=output, stderr=subprocess.DEVNULL, pass_fds=(writing,), env=environment(writing)
        )
        os.close(writing)
        drain(reading, relay)
        assert child.wait() == 0
    tell(site, json.loads(figures.read_text()), relay, held)


def environment(writing: int) -> dict[str, str]:
    """One thread for the training, as a worker's engine has on a busy machine, and where its lines go."""
    return {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "LINES": str(writing), "PYTHONPATH": str(Path.cwd())}


def beating(site: LoadSite, relay: Relay, held: Any, settings: Settings) -> Lease:
    """The lease of a worker: it writes what the relay has collected with each beat."""
    return Lease(site.database, held, relay, settings, timeout=3600, drain=Path("/nonexistent"))


def drain(reading: int, relay: Relay) -> None:
    """Feed the relay until the child closes its end."""
    lines = Lines(relay.feed)
    while data := os.read(reading, 65536):
        lines.feed(data)
    os.close(reading)


def tell(site: LoadSite, figures: Any, relay: Relay, held: Any) -> None:
    """The medians, their ratio, and what became of the points."""
    with site.database.session_scope() as session:
        relay.take().store(session, held)
    with site.database.session_scope(read_only=True) as session:
        stored = session.scalar(select(func.count()).where(MetricPoint.job_id == held.job_id))
    for kind in ("clock", "processor"):
        pairs = [(pair["silent"][kind], pair["telling"][kind]) for pair in figures["pairs"]]
        silent, telling = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([after / before for before, after in pairs], n=4)
        print(f"step by the {kind}: {silent:.3f} ms without points, {telling:.3f} ms with; of neighbouring blocks the")
        print(f"  ratio is {middle:.4f} (quartiles {low:.4f}, {high:.4f}; n {len(pairs)}); target {TARGET}")
    print(f"{figures['points']} points in {figures['seconds']:.1f} s of blocks with points, {stored} stored, ", end="")
    print(f"{relay.malformed} malformed; {load()}")


# What follows runs in the process that trains


def train(arguments: Any) -> None:
    """Steps of a small classifier; prints the seconds of each."""
    import torch

    from workers.engine.reporter import Reporter

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256))
    optimiser = torch.optim.AdamW(network.parameters())
    rows = torch.randn(256, 256)

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(network(rows), rows).backward()
        optimiser.step()

    with os.fdopen(int(os.environ["LINES"]), "w") as lines:
        json.dump(blocks(step, Reporter(lines), arguments), sys.stdout)


def blocks(step: Callable[[], None], reporter: Any, arguments: Any) -> dict[str, Any]:
    """Pairs of blocks, one without and one with points, in an order by chance: seconds of a step in each."""
    chance = random.Random(arguments.seed)
    for _ in range(50):
        step()
    pairs: list[dict[str, Any]] = []
    points, seconds = 0, 0.0
    for _ in range(arguments.blocks // 2):
        pairs.append({})
        for name in chance.sample(["silent", "telling"], 2):
            rate = arguments.points if name == "telling" else 0
            pairs[-1][name], told = block(step, reporter, rate, points)
            points += told
            seconds += BLOCK_SECONDS * (rate > 0)
    return {"pairs": pairs, "points": points, "seconds": seconds}


def block(step: Callable[[], None], reporter: Any, rate: float, first: int) -> tuple[dict[str, float], int]:
    """Seconds of a step by the clock and by the processor, and how many points were reported, from `first` on."""
    steps, told = 0, 0
    begun, used = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - begun) < BLOCK_SECONDS:
        step()
        steps += 1
        for number in range(told, int(elapsed * rate)):
            reporter.metric("loss", first + number, 0.123456789)
            told += 1
    return {"clock": elapsed / steps, "processor": (time.process_time() - used) / steps}, told


if __name__ == "__main__":
    main()

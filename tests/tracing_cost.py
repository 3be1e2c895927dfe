"""Measures what traces cost: `tracing_cost.py BINARY [ROUNDS]` (9 rounds: about 5 minutes on 2 idle cores).

In each round, each setting has its own relay and both loads; the order of the settings changes from round to
round. The table shows the median over the rounds, and the median of the ratio to `off` in the same round.
The relay has one core; the load generator and the receiver of the spans have the other."""

import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import urllib.request

RELAY, RECEIVER, UNUSED = 18092, 18093, 18094
RELAY_CORE, LOAD_CORE = 0, 1
# Messages in flight on each of 100 pairs.
WINDOWS = (1, 64)


def tracing(ratio, port=RECEIVER):
    return {
        "SWITCHBOARD__TRACING__OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "SWITCHBOARD__TRACING__SAMPLE_RATIO": str(ratio),
    }


SETTINGS = {
    "off": {},
    "on, none sampled": tracing(0),
    "1% sampled": tracing(0.01),
    "1% sampled, receiver away": tracing(0.01, UNUSED),
    "all sampled": tracing(1),
}


async def take(reader, writer):
    """Reads the spans of one request. An empty body in the answer means that all spans were accepted."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.split(b":")[1]))
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


async def receive(ready):
    async with await asyncio.start_server(take, "127.0.0.1", RECEIVER) as server:
        ready.set()
        await server.serve_forever()


def receiver(ready):
    os.sched_setaffinity(0, {LOAD_CORE})
    asyncio.run(receive(ready))


def counted(name):
    """Returns the sum of all series of a metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{RELAY}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def serves():
    for _ in range(200):
        try:
            return counted("switchboard_connections")
        except OSError:
            time.sleep(0.02)
    sys.exit(f"the relay does not answer on 127.0.0.1:{RELAY}")


def load(binary, window):
    """Returns the CPU time of the relay for each message in µs, and the messages per second."""
    command = [binary, "bench", "pairs", "--json", f"--window={window}", f"--url=ws://127.0.0.1:{RELAY}/"]
    done = subprocess.run(["taskset", "-c", str(LOAD_CORE), *command], stdout=subprocess.PIPE, check=True)
    (outcome,) = json.loads(done.stdout)["outcomes"]
    assert outcome["check"]["ok"], outcome["check"]
    (row,) = outcome["rows"]
    return row["server"]["cpu_us_per_message"], row["messages_per_second"]


def measure(binary, variables):
    """Runs both loads on a relay with these settings. Yields the figures, and the spans sent and lost."""
    environment = {**os.environ, **variables, "SWITCHBOARD__SERVER__LISTEN": f"127.0.0.1:{RELAY}"}
    command = ["taskset", "-c", str(RELAY_CORE), binary]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as relay:
        try:
            serves()
            for window in WINDOWS:
                families = [f"switchboard_trace_spans_{what}_total" for what in ("exported", "dropped")]
                before = [counted(family) for family in families]
                figures = load(binary, window)
                yield (*figures, *(counted(family) - sum_before for family, sum_before in zip(families, before)))
        finally:
            relay.kill()


def spread(values):
    """Returns the median, and the quartiles: half of the rounds are between them."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:+.1f}% ({low:+.1f} to {high:+.1f})"


def main():
    _, binary, *rounds = sys.argv
    rounds = int(rounds[0]) if rounds else 9
    runs = {(setting, window): [] for setting in SETTINGS for window in WINDOWS}
    names = list(SETTINGS)
    for number in range(rounds):
        turn = number % len(names)
        order = names[turn:] + names[:turn]
        for setting in order if number % 2 else reversed(order):
            for window, figures in zip(WINDOWS, measure(binary, SETTINGS[setting]), strict=True):
                runs[setting, window].append(figures)
    print("| traces | under way | messages a second | CPU a message | against off | spans sent | lost |")
    print("| - | - | - | - | - | - | - |")
    for window in WINDOWS:
        for setting in names:
            own, off = runs[setting, window], runs["off", window]
            cpu, rate, sent, lost = (statistics.median(column) for column in zip(*own))
            ratios = [100 * (with_it[0] / without[0] - 1) for with_it, without in zip(own, off)]
            against = "" if setting == "off" else spread(ratios)
            print(f"| {setting} | {window} | {rate:,.0f} | {cpu:.3f} µs | {against} | {sent:,.0f} | {lost:,.0f} |")


if __name__ == "__main__":
    started = multiprocessing.Event()
    sink = multiprocessing.Process(target=receiver, args=(started,), daemon=True)
    sink.start()
    started.wait()
    try:
        main()
    finally:
        sink.kill()

"""Puts the same load on each proxy in turn, and says what a request or an event costs it: CPU time, not elapsed time.

Arguments: "time", "stream" or "cache", rounds, seconds a round, the load's core, then NAME=PID=PORT for each proxy. The proxies
take turns within a round, so that what disturbs the machine disturbs them alike.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import streams

HERE = Path(__file__).resolve().parent


def tree(root):
    """A process and all that descend from it."""
    found, ahead = [], [root]
    while ahead:
        pid = ahead.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            ahead += [int(child) for child in children.read_text().split()]
    return found


def cpu_seconds(root):
    """User and system time of all threads of a process and its descendants, to the nanosecond."""
    schedules = (path for pid in tree(root) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in schedules) / 1e9


def megabytes(root):
    """The memory that a process and its descendants hold; what they share counts for each."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in tree(root))
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def requests(name, pid, port, seconds):
    """64 keep-alive connections for so long: what wrk tells. The name may end in the load, after a comma."""
    load = next((load for load in ("hit", "miss") if name.endswith(load)), "plain")
    before = cpu_seconds(pid)
    finished = subprocess.run(
        ["wrk", "-t1", "-c64", f"-d{seconds}s", "-s", HERE / "chat.lua", f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"LOAD": load},
    )
    used = cpu_seconds(pid) - before
    line = next(line for line in finished.stdout.splitlines() if line.startswith("measured "))
    number, microseconds, errors, p50, p99 = map(int, line.split()[1:])
    if errors or not number:
        sys.exit(f"{errors} of {number} requests failed:\n{finished.stdout}")
    took = microseconds / 1e6
    return {
        "CPU µs": used / number * 1e6,
        "a second": number / took,
        "core busy, %": used / took * 100,
        "p50, ms": p50 / 1e3,
        "p99, ms": p99 / 1e3,
        "RSS, MB": megabytes(pid),
    }


def events(_name, pid, port, seconds):
    """100 streams at the engine's pace, measured for so long once all of them flow. None may lack an event."""
    opened = streams.Streams(port, 100, seconds + 2)
    opened.read_for(1)
    read, before, start = opened.events, cpu_seconds(pid), time.monotonic()
    opened.read_for(seconds)
    used, took, count = cpu_seconds(pid) - before, time.monotonic() - start, opened.events - read
    held = megabytes(pid)
    opened.read_to_the_end()
    return {
        "CPU µs": used / count * 1e6,
        "a second": count / took,
        "core busy, %": used / took * 100,
        "RSS, MB": held,
    }


def main():
    load = {"time": requests, "cache": requests, "stream": events}[sys.argv[1]]
    rounds, seconds, core = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    proxies = [(name, int(pid), int(port)) for name, pid, port in (word.split("=") for word in sys.argv[5:])]
    os.sched_setaffinity(0, {core})
    width = max(len(name) for name, _, _ in proxies)
    for name, pid, port in proxies:
        load(name, pid, port, 1)

    told = {name: [] for name, _, _ in proxies}
    for number in range(1, rounds + 1):
        for name, pid, port in proxies:
            told[name].append(load(name, pid, port, seconds))
            values = "".join(f"  {title} {value:8.1f}" for title, value in told[name][-1].items())
            print(f"round {number}  {name:{width}}{values}", flush=True)

    def ratios(name):
        """CPU time over nginx's in the same round: a variant with a log is held against nginx with one, all with a cache
        against what nginx has kept."""
        peers = ["nginx, log"] if name.endswith(", log") else ["nginx", "nginx, hit"]
        peer = next(peer for peer in peers if peer in told)
        return [one["CPU µs"] / other["CPU µs"] for one, other in zip(told[name], told[peer], strict=True)]

    titles = list(told[proxies[0][0]][0])
    print(f"\nmedians of {rounds} rounds of {seconds} s, ratios round by round\n")
    print("|".join(["", " proxy ", *(f" {title} " for title in titles), " × nginx (lowest–highest) ", ""]))
    print("|---|" + "--:|" * (len(titles) + 1))
    for name, _, _ in proxies:
        medians = [statistics.median(tell[title] for tell in told[name]) for title in titles]
        shown = "".join(f" {value:.{0 if value >= 1000 else 1}f} |" for value in medians)
        times = ratios(name)
        print(f"| {name} |{shown} {statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f}) |")


main()

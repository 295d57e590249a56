"""Puts the same load on each proxy in turn, and says what a request costs it: CPU time, not elapsed time.

Arguments: rounds, seconds a round, the load's core, then NAME=PID=PORT for each proxy. The proxies take turns within a
round, so that what disturbs the machine disturbs them alike.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
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
    """User and system time of all threads, ended ones included, of a process and its descendants."""
    ticks = 0
    for pid in tree(root):
        # The second field is the command in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def load(port, seconds, core):
    """64 keep-alive connections for so long; the number of requests answered, and the seconds it took."""
    finished = subprocess.run(
        ["taskset", "-c", core, "wrk", "-t1", "-c64", f"-d{seconds}s", "-s", HERE / "chat.lua"]
        + [f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in finished.stdout.splitlines() if line.startswith("measured "))
    requests, microseconds, errors = map(int, line.split()[1:])
    if errors or not requests:
        sys.exit(f"{errors} of {requests} requests failed:\n{finished.stdout}")
    return requests, microseconds / 1e6


def main():
    rounds, seconds, core = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    proxies = [(name, int(pid), int(port)) for name, pid, port in (word.split("=") for word in sys.argv[4:])]
    width = max(len(name) for name, _, _ in proxies)
    for _, _, port in proxies:
        load(port, 1, core)

    costs, rates, busy = ({name: [] for name, _, _ in proxies} for _ in range(3))
    for number in range(1, rounds + 1):
        for name, pid, port in proxies:
            before = cpu_seconds(pid)
            requests, took = load(port, seconds, core)
            used = cpu_seconds(pid) - before
            costs[name].append(used / requests * 1e6)
            rates[name].append(requests / took)
            busy[name].append(used / took * 100)
            print(
                f"round {number}  {name:{width}}  {costs[name][-1]:7.1f} µs CPU/request"
                f"  {rates[name][-1]:8.0f} requests/s  core {busy[name][-1]:3.0f} % busy",
                flush=True,
            )

    def of_plain_nginx(name):
        """The ratio to nginx in the same round, for each round: a variant with a log is held against nginx with one."""
        peer = "nginx, log" if name.endswith(", log") else "nginx"
        return [cost / other for cost, other in zip(costs[name], costs[peer], strict=True)]

    print(f"\nmedians of {rounds} rounds of {seconds} s, ratios round by round\n")
    print("| proxy | CPU µs/request | requests/s | core busy | × nginx (lowest–highest) |")
    print("|---|--:|--:|--:|--:|")
    for name, _, _ in proxies:
        ratios = of_plain_nginx(name)
        print(
            f"| {name} | {statistics.median(costs[name]):.1f} | {statistics.median(rates[name]):.0f}"
            f" | {statistics.median(busy[name]):.0f} % | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f}–{max(ratios):.2f}) |"
        )


main()

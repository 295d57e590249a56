"""What one more request or event costs in instructions, from two callgrind runs that differ in their number.

Arguments: how many the runs differ by, "request" or "event", the smaller run's output, the larger's; then "top" for the crates and
functions too. What both runs do alike (start, warm-up, shutdown) cancels out.
"""

import re
import subprocess
import sys
from collections import Counter

COST = re.compile(r"^\s*([\d,]+)(?: \([ \d.]+%\))?\s+(.*)$")
PLACE = re.compile(r"^(?P<file>.*?):(?P<function>.*?)(?: \[(?P<object>[^\]]*)\])?$")
# Where a crate's sources lie: cargo's registry, the standard library, the crates that the standard library brings.
CRATE_OF_FILE = re.compile(
    r"/registry/src/[^/]+/([\w-]+?)-\d+\.\d"
    r"|/library/(core|alloc|std)/"
    r"|^/rust/deps/([\w-]+?)-\d+\.\d"
    r"|^(?:\./)?(src)/"
)
CRATE_OF_FUNCTION = re.compile(r"[<&*]*(?:dyn |mut )*(\w+)(?:\[\w+\])?::")


def annotated(output):
    """The total and the cost of each function of a run."""
    text = subprocess.run(
        ["callgrind_annotate", "--threshold=100", "--auto=no", output], capture_output=True, text=True, check=True
    ).stdout
    total, costs = 0, Counter()
    for line in text.splitlines():
        found = COST.match(line)
        if not found:
            continue
        cost = int(found[1].replace(",", ""))
        if "PROGRAM TOTALS" in line:
            total = cost
        elif PLACE.match(found[2]):
            costs[found[2]] += cost
    return total, costs


def written_in(place):
    """The crate whose source holds an instruction, wherever it was inlined; else what it runs in."""
    found = CRATE_OF_FILE.search(place["file"])
    if not found:
        return runs_in(place)
    crate = next(group for group in found.groups() if group)
    return "forebay" if crate == "src" else crate.replace("-", "_")


def runs_in(place):
    """The crate whose function an instruction ended up in; for C its library."""
    found = CRATE_OF_FUNCTION.match(place["function"])
    if found:
        return found[1]
    if CRATE_OF_FILE.search(place["file"]):
        return written_in(place)
    return (place["object"] or place["file"]).rpartition("/")[2]


def shown(title, key, costs, number, lines):
    """Prints the largest sums of costs by what `key` makes of their places."""
    sums = Counter()
    for entry, cost in costs.items():
        sums[key(PLACE.match(entry))] += cost
    whole = sum(sums.values())
    print(f"\n{title}")
    for name, cost in sums.most_common(lines):
        if cost >= number:
            print(f"{cost / number:10,.0f}  {cost / whole * 100:5.1f} %  {name[:150]}")


def main():
    number, what, smaller, larger = int(sys.argv[1]), sys.argv[2], annotated(sys.argv[3]), annotated(sys.argv[4])
    print(f"{(larger[0] - smaller[0]) / number:,.0f} instructions/{what}")
    if "top" in sys.argv[5:]:
        costs = Counter(larger[1])
        costs.subtract(smaller[1])
        shown(f"by the crate it is written in, instructions/{what}", written_in, costs, number, 25)
        shown(f"by the crate whose function it runs in, instructions/{what}", runs_in, costs, number, 25)
        shown(f"by function, instructions/{what}", lambda place: place["function"], costs, number, 40)


main()

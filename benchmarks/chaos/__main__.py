"""What goes wrong around a library, over and over: kills, full disks, jumping clocks, damaged and hostile files.

    python -m benchmarks.chaos --minutes 20                       # all parts, which divide the time among them
    python -m benchmarks.chaos --minutes 5 --only kills --seed 7
    python -m benchmarks.chaos --minutes 1 --only images --first 1234    # a case that the JSON names, again

A case is lost if a repeated command does not end in the files of an undisturbed run, if an error is not one line that
the library meant to say, or if a damaged file is used. Prints a table and saves JSON, also on the way; exits with 1 if
any case is lost.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from tinymae.files import write_json

from .parts import PARTS, cases
from .runs import Runs, warm_up

WEIGHTS = {"kills": 9, "disk": 3, "clock": 3, "memory": 3}  # of the parts' times


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="in all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts", metavar="PART")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--output", default="runs/chaos.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(args)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        warm_up()
        end = time.monotonic() + 60 * args.minutes
        for index, part in enumerate(args.only):
            weights = [WEIGHTS.get(name, 1) for name in args.only[index:]]  # what a part leaves goes to others
            now = time.monotonic()
            record.begin(part)
            for case in cases(part, runs, args.seed, args.first, now + (end - now) * weights[0] / sum(weights)):
                record.add(part, case)
    record.write()
    record.print_table()
    return 1 if any(row["lost"] for row in record.content["parts"].values()) else 0


class Record:
    """What was tried and what was lost, in a file that is written again every half minute."""

    def __init__(self, args: argparse.Namespace):
        self.output, self.began, self.written = args.output, time.monotonic(), time.monotonic()
        machine = {
            "platform": f"{platform.system()}-{platform.machine()}-{''.join(platform.libc_ver())}",
            "python": platform.python_version(), "torch": torch.__version__, "cores": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        self.content: dict = {
            "seed": args.seed, "minutes": args.minutes, "seconds": 0.0, "machine": machine, "parts": {},
        }  # fmt: skip

    def begin(self, part: str) -> None:
        """From here on cases are of this part."""
        self.part_began = time.monotonic()
        self.content["parts"][part] = {"tried": 0, "lost": 0, "seconds": 0.0, "counts": {}, "losses": []}

    def add(self, part: str, case: dict) -> None:
        """Count a case; one that is lost is shown at once and kept."""
        row, now = self.content["parts"][part], time.monotonic()
        row["tried"] += 1
        row["seconds"] = round(now - self.part_began, 1)
        for name, count in case.get("counts", {}).items():
            row["counts"][name] = row["counts"].get(name, 0) + count
        if case["lost"] is not None:
            row["lost"] += 1
            row["losses"].append(case)
            print(f"{part}, case {case['case']}: {case['what']}: {case['lost'].strip().splitlines()[-1][:300]}")
        if now - self.written > 30:
            print(f"{now - self.began:.0f} s, {part}: {row['tried']:,} tried, {row['lost']} lost", flush=True)
            self.write()

    def write(self) -> None:
        """Save what is known so far."""
        self.written = time.monotonic()
        self.content["seconds"] = round(self.written - self.began, 1)
        write_json(self.output, self.content)

    def print_table(self) -> None:
        """What was tried and lost of each part."""
        print(f"{'part':14}{'tried':>8}{'lost':>8}{'seconds':>10}")
        for part, row in self.content["parts"].items():
            counts = ", ".join(f"{count:,} {name}" for name, count in row["counts"].items())
            print(f"{part:14}{row['tried']:>8,}{row['lost']:>8}{row['seconds']:>10.0f}   {counts}")
        print(f"wrote {self.output}")


if __name__ == "__main__":
    sys.exit(main())

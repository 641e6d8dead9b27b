"""Print how soon faults are braked for, as a table, from what the fault tests measured.

for i in 1 2 3; do WM_FIGURES=braking.jsonl pytest test/faults -q; done
python test/benchmark/braking_table.py braking.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median


def main() -> None:
    """Group the figures by test and print median and worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="file that WM_FIGURES named")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in parser.parse_args().figures.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = row.pop("test").removeprefix("test_").replace("_", " ")
        for key, value in row.items():
            found[name][key].append(value)
    print("| fault | times | onset, ms: median, worst | standstill after it, ms: median, worst |")
    print("|---|---|---|---|")
    for name, figures in found.items():
        cells = [
            f"{median(values):.0f}, {max(values):.0f}" if values else ""
            for values in (figures["onset_ms"], figures["standstill_ms"])
        ]
        count = max(len(values) for values in figures.values())
        print(f"| {name} | {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

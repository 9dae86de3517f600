"""Chaos: the local platform under load, everything around it going wrong, and then nothing lost, doubled or wrong.

`python -m tests.chaos --seed 7 --seconds 20`. The seed decides everything that this program decides: which faults,
when, to whom; which customers, who want what, and when they come.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.report import summary
from tests.chaos.run import Run
from tests.chaos.schedule import schedule

RATE = 20.0  # orders a second: the proxies, the customers and the platform share a small machine


def main() -> None:
    options = _options()
    console = Console(width=120, highlight=False)
    seeds = range(options.seed, options.seed + options.seeds)
    results = [_one(seed, options, console) for seed in seeds]
    console.print(_table(results))
    total = summary(results)
    console.print(_total(total))
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "result.json"
    path.write_text(json.dumps({"total": total, "runs": results}, indent=2) + "\n")
    console.print(f"Written to {path}.")
    sys.exit(1 if total["runs that broke a rule"] else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--seconds", type=float, default=20.0, help="of faults and load, for each")
    parser.add_argument("--rate", type=float, default=RATE, help="orders a second")
    parser.add_argument("--folder", type=Path, default=Path(".run/chaos"), help="where results and evidence go")
    return parser.parse_args()


def _one(seed: int, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    faults = schedule(seed, options.seconds)
    console.print(f"\nSeed {seed}: {len(faults)} faults in {options.seconds:g} s at {options.rate:g} orders/s")
    for fault in faults:
        console.print(f"  {fault}", soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="orderstream-chaos-") as scratch:
        Path(scratch).chmod(0o711)  # Postgres may have to run as another user
        evidence = options.folder.absolute() / f"seed-{seed}"
        run = Run(seed, options.seconds, options.rate, faults, Path(scratch), evidence)
        result = asyncio.run(run.play())
    if result["violations"]:
        for violation in result["violations"][:20]:
            console.print(f"  [red]{violation}", soft_wrap=True)
        console.print(f"  {len(result['violations'])} rules broken; the evidence is in {evidence}", soft_wrap=True)
    return result


def _table(results: list[dict[str, Any]]) -> Table:
    columns = ("orders", "deliveries", "faults", "lost", "duplicates", "extra %", "seconds to drain", "violations")
    table = Table("seed", *columns)
    for one in results:
        values = {**one, "faults": sum(one["faults"].values()), "violations": len(one["violations"])}
        table.add_row(str(one["seed"]), *(str(values[name]) for name in columns))
    return table


def _total(total: dict[str, Any]) -> Table:
    table = Table("in all", "")
    for name, value in total.items():
        shown = ", ".join(f"{kind} {count}" for kind, count in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, shown)
    return table


if __name__ == "__main__":
    main()

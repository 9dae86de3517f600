"""Chaos: the local platform under load, everything around it going wrong, and then nothing lost, doubled or wrong.

`python -m tests.chaos --seed 7 --seconds 20`. The seed decides everything that this program decides: which faults,
when, to whom; which customers, who want what, and when they come.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.local.errors import PlatformError
from tests.chaos.report import not_played, summary
from tests.chaos.run import Run
from tests.chaos.schedule import Fault, schedule

RATE = 20.0  # orders a second: the proxies, the customers and the platform share a small machine


def main() -> None:
    options = _options()
    console = Console(width=120, highlight=False)
    seeds = range(options.seed, options.seed + options.seeds)
    options.folder.mkdir(parents=True, exist_ok=True)
    path, results = options.folder / "result.json", []
    for seed in seeds:
        results.append(_one(seed, options, console))
        path.write_text(json.dumps({"total": summary(results), "runs": results}, indent=2) + "\n")
    console.print(_table(results), _total(summary(results)))
    console.print(f"Written to {path}.")
    sys.exit(1 if any(result["violations"] for result in results) else 0)


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
        console.print(f"  {fault}", soft_wrap=True, markup=False)
    evidence = options.folder.absolute() / f"seed-{seed}"
    result = _play(seed, faults, options, evidence)
    counts = (f"{name} {result[name]}" for name in ("orders", "deliveries", "lost", "duplicates", "seconds to drain"))
    console.print(f"  {', '.join(counts)}")
    for violation in result["violations"][:20]:
        console.print(f"  {violation}", style="red", soft_wrap=True, markup=False)
    if result["violations"]:
        console.print(f"  {len(result['violations'])} violations; the evidence is in {evidence}", soft_wrap=True)
    return result


def _play(seed: int, faults: Sequence[Fault], options: argparse.Namespace, evidence: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="orderstream-chaos-") as scratch:
        Path(scratch).chmod(0o711)  # Postgres may have to run as another user
        run = Run(seed, options.seconds, options.rate, faults, Path(scratch), evidence)
        try:
            return asyncio.run(run.play())
        except (PlatformError, TimeoutError) as error:
            shutil.rmtree(evidence, ignore_errors=True)
            shutil.copytree(Path(scratch, "run", "logs"), evidence)
            return not_played(seed, faults, error)


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

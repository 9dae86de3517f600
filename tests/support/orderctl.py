"""`orderctl` as people and scripts use it: a process with arguments, an environment, and an exit code."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


async def orderctl(*arguments: str, **environment: str | None) -> Said:
    """Run one command to its end; what is None in the environment is not set."""
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "COLUMNS": "80"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.orderctl", *arguments),
        cwd=ROOT,
        env=base | {name: value for name, value in environment.items() if value is not None},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return Said(process.returncode or 0, out.decode(), err.decode())

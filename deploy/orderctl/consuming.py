"""`orderctl pause` and `orderctl resume`: a service stops consuming events, and goes on, here."""

from typing import Annotated

import typer

from deploy.orderctl.operations import call
from deploy.orderctl.terminal import AsJson, Service, say

commands = typer.Typer(rich_markup_mode=None)


@commands.command()
def pause(
    service: Service,
    reason: Annotated[str, typer.Option(help="why; shown wherever somebody looks")] = "paused by hand",
    *,
    as_json: AsJson = False,
) -> None:
    """Stop a service from consuming events until somebody resumes it, also over restarts. Nothing is lost."""
    paused = call("POST", "/ops/pause", {"reason": reason}, service=service)
    say(paused, f"{service} is paused: {reason}", as_json=as_json)


@commands.command()
def resume(service: Service, *, as_json: AsJson = False) -> None:
    """Let a service consume events again, whoever paused it: somebody, or its brake."""
    resumed = call("POST", "/ops/resume", service=service)
    say(resumed, f"{service} consumes events.", as_json=as_json)

"""How histories of a model are played: the same ones every time, or new ones that are made small when they fail."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def play(machine: type[RuleBasedStateMachine], examples: int, steps: int, *, search: bool) -> None:
    """Play `examples` histories of at most `steps` steps each; with `search` nobody has seen them before."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=not search,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if search else [Phase.generate],
        ),
    )

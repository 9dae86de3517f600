"""The sandbox's pages for people: payments, faults, and the 3-D Secure challenge."""

import hmac
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from deploy.local.payments.challenge import finish_challenge
from deploy.local.payments.errors import StripeError
from deploy.local.payments.faults import RATES, FaultError, FaultPlan, read_faults
from deploy.local.payments.form import Pairs, read_pairs
from deploy.local.payments.ledger import Ledger
from deploy.local.payments.money import display

HERE = Path(__file__).parent
SHOWN = 100
WHOLE_NUMBERS = frozenset({"latency_ms", "seed"})


class Website:
    def __init__(self, ledger: Ledger, faults: FaultPlan) -> None:
        self._ledger = ledger
        self._faults = faults
        self._templates = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)
        self._templates.filters["money"] = display

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.show_payments),
            Route("/faults", self.set_faults, methods=["POST"]),
            Route("/3ds/{intent}", self.show_challenge, methods=["GET"]),
            Route("/3ds/{intent}", self.answer_challenge, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    async def show_payments(self, _request: Request) -> Response:
        return self._payments()

    async def set_faults(self, request: Request) -> Response:
        try:
            self._faults.set(read_faults(_typed(read_pairs(await request.body()))))
        except (FaultError, ValueError, StripeError) as error:
            return self._payments(problem=str(error), status=422)
        return RedirectResponse("/", 303)

    async def show_challenge(self, request: Request) -> Response:
        return self._challenge(request, request.query_params.get("client_secret", ""))

    async def answer_challenge(self, request: Request) -> Response:
        fields = dict(read_pairs(await request.body()))
        secret = fields.get("client_secret", "")
        page = self._challenge(request, secret)
        if page.status_code == 200 and fields.get("outcome") in {"complete", "fail"}:  # noqa: PLR2004
            self._finish(request.path_params["intent"], passed=fields["outcome"] == "complete")
            page = self._challenge(request, secret)
        return page

    def _finish(self, intent_id: str, *, passed: bool) -> None:
        # Answered twice, in two tabs or by a double click: the first answer counts and the page shows it.
        if self._ledger.intent(intent_id).status == "requires_action":
            finish_challenge(self._ledger, intent_id, passed=passed)

    def _challenge(self, request: Request, secret: str) -> Response:
        try:
            intent = self._ledger.intent(request.path_params["intent"])
        except StripeError:
            return self._page("missing.html", 404)
        if not hmac.compare_digest(intent.client_secret.encode(), secret.encode()):
            return self._page("missing.html", 404)
        return self._page("challenge.html", 200, intent=intent)

    def _payments(self, problem: str | None = None, status: int = 200) -> Response:
        newest = self._ledger.intents[: -SHOWN - 1 : -1]
        return self._page(
            "payments.html",
            status,
            payments=newest,
            total=len(self._ledger.intents),
            refunds=len(self._ledger.refunds),
            faults=self._faults.describe(),
            rates=RATES,
            problem=problem,
        )

    def _page(self, template: str, status: int, **values: Any) -> Response:  # noqa: ANN401 - jinja2 takes any
        return HTMLResponse(self._templates.get_template(template).render(**values), status)


def _typed(fields: Pairs) -> dict[str, float | int]:
    """A form sends text only; what was left empty is left out."""
    return {name: int(value) if name in WHOLE_NUMBERS else float(value) for name, value in fields if value.strip()}

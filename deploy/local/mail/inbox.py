"""The inbox: pages for people, a JSON API for tests, and the fault settings."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from deploy.local.mail.faults import FaultError, FaultPlan, read_faults
from deploy.local.mail.guard import Guard
from deploy.local.mail.parts import read_parts
from deploy.local.mail.store import Mail, Store

HERE = Path(__file__).parent
PAGE_LIMIT = 50
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
# A mail is written by who knows whom: shown without scripts, forms, frames or anything from the network.
MAIL_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class BadQuery(ValueError):
    """The query of a list makes no sense; the text says what would."""


class Inbox:
    def __init__(self, store: Store, faults: FaultPlan) -> None:
        self.store = store
        self.faults = faults
        self._pages = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True)

    # --- for tests

    async def list_messages(self, request: Request) -> Response:
        try:
            mails, more = self._find(request, DEFAULT_LIMIT)
        except BadQuery as error:
            return _problem(422, str(error))
        return JSONResponse({"items": [self._describe(mail) for mail in mails], "has_more": more})

    async def get_message(self, request: Request) -> Response:
        mail = self.store.get(request.path_params["id"])
        return _problem(404, "no such message") if mail is None else JSONResponse(self._describe(mail))

    async def count(self, request: Request) -> Response:
        query = request.query_params
        return JSONResponse({"count": self.store.count(query.get("to"), query.get("message_id"))})

    async def delete_all(self, _request: Request) -> Response:
        return JSONResponse({"deleted": self.store.clear()})

    async def show_faults(self, _request: Request) -> Response:
        return JSONResponse(self.faults.describe())

    async def set_faults(self, request: Request) -> Response:
        try:
            self.faults.set(read_faults(json.loads(await request.body())))
        except FaultError as error:
            return _problem(422, str(error))
        except ValueError:
            return _problem(422, "the body is not JSON")
        return JSONResponse(self.faults.describe())

    async def ready(self, _request: Request) -> Response:
        return JSONResponse({"status": "pass", "messages": len(self.store)})

    # --- for people

    async def show_inbox(self, request: Request) -> Response:
        try:
            mails, more = self._find(request, PAGE_LIMIT)
        except BadQuery as error:
            return PlainTextResponse(str(error), 422)
        to = request.query_params.get("to") or ""
        return self._page(
            "inbox.html", mails=mails, more=more, to=to, total=len(self.store), faults=self.faults.describe()
        )

    async def show_message(self, request: Request) -> Response:
        mail = self.store.get(request.path_params["id"])
        if mail is None:
            return self._page("missing.html", status=404)
        raw = self.store.read(mail)
        source = raw.decode("utf-8", "replace")
        return self._page("message.html", mail=mail, parts=read_parts(raw), source=source)

    async def show_html(self, request: Request) -> Response:
        mail = self.store.get(request.path_params["id"])
        html = None if mail is None else read_parts(self.store.read(mail)).html
        if html is None:
            return PlainTextResponse("no HTML part", 404)
        return HTMLResponse(html, headers={"content-security-policy": MAIL_POLICY})

    async def empty(self, _request: Request) -> Response:
        self.store.clear()
        return RedirectResponse("/", 303)

    async def calm(self, _request: Request) -> Response:
        self.faults.set(read_faults({}))
        return RedirectResponse("/", 303)

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:  # noqa: ANN401 - jinja2 takes any
        return HTMLResponse(self._pages.get_template(template).render(**values), status)

    def _find(self, request: Request, default_limit: int) -> tuple[list[Mail], bool]:
        query = request.query_params
        limit = query.get("limit", str(default_limit))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= MAX_LIMIT):
            raise BadQuery(f"limit must be a number from 1 to {MAX_LIMIT}")
        before = None
        if query.get("starting_after"):
            before = self.store.get(query["starting_after"])
            if before is None:
                raise BadQuery("starting_after must be the id of a message")
        return self.store.find(query.get("to") or None, query.get("message_id") or None, int(limit), before)

    def _describe(self, mail: Mail) -> dict[str, Any]:
        parts = read_parts(self.store.read(mail))
        return {
            "id": mail.id,
            "from": mail.sender,
            "to": list(mail.recipients),
            "subject": mail.subject,
            "message_id": mail.message_id,
            "received_at": mail.received_at,
            "text": parts.text,
            "html": parts.html,
            "headers": parts.headers,
        }


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"error": detail}, status)


def make_inbox(store: Store, faults: FaultPlan) -> Starlette:
    inbox = Inbox(store, faults)
    return Starlette(
        routes=[
            Route("/", inbox.show_inbox),
            Route("/messages/{id}", inbox.show_message),
            Route("/messages/{id}/html", inbox.show_html),
            Route("/empty", inbox.empty, methods=["POST"]),
            Route("/calm", inbox.calm, methods=["POST"]),
            Route("/api/messages", inbox.list_messages, methods=["GET"]),
            Route("/api/messages", inbox.delete_all, methods=["DELETE"]),
            Route("/api/messages/{id}", inbox.get_message),
            Route("/api/count", inbox.count),
            Route("/api/faults", inbox.show_faults, methods=["GET"]),
            Route("/api/faults", inbox.set_faults, methods=["POST"]),
            Route("/health/ready", inbox.ready),
            Route("/health/live", inbox.ready),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Guard)],
    )

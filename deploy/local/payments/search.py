"""The part of Stripe's search language that finds intents: `metadata['order_id']:'ord_1' AND amount:200`."""

import re
from collections.abc import Iterable
from itertools import islice

from deploy.local.payments.errors import InvalidRequest
from deploy.local.payments.intents import Intent
from deploy.local.payments.ledger import Ledger

CLAUSE = re.compile(
    r"""\s*(?:metadata\[(?P<mq>['"])(?P<meta>[^'"]{1,40})(?P=mq)\]|(?P<field>status|currency|amount))
        \s*:\s*(?:(?P<q>['"])(?P<text>(?:\\.|(?!(?P=q)).)*)(?P=q)|(?P<number>\d+))\s*""",
    re.VERBOSE,
)
AND = re.compile(r"(?i:and)\b")
Clauses = list[tuple[str, bool, str]]  # (name, is metadata, value)


def find(ledger: Ledger, query: str, limit: int, page: str | None) -> tuple[list[Intent], str | None]:
    """Newest first. An order is looked up by index; a query without `order_id` reads all intents."""
    clauses = parse(query)
    order_id = next((value for name, is_meta, value in clauses if is_meta and name == "order_id"), None)
    candidates: Iterable[Intent] = reversed(ledger.intents) if order_id is None else ledger.of_order(order_id)
    skip = _offset(page)
    matching = (intent for intent in candidates if all(_matches(intent, clause) for clause in clauses))
    found = list(islice(matching, skip, skip + limit + 1))
    return found[:limit], str(skip + limit) if len(found) > limit else None


def parse(query: str) -> Clauses:
    clauses: Clauses = []
    at = 0
    while True:
        clause = CLAUSE.match(query, at)
        if clause is None:
            raise InvalidRequest(f"We were unable to parse your search query: {query}", param="query")
        value = clause["number"] or re.sub(r"\\(.)", r"\1", clause["text"] or "")
        clauses.append((clause["meta"] or clause["field"], clause["meta"] is not None, value))
        if clause.end() == len(query):
            return clauses
        joint = AND.match(query, clause.end())
        if joint is None:
            raise InvalidRequest(f"We were unable to parse your search query: {query}", param="query")
        at = joint.end()


def _offset(page: str | None) -> int:
    if page is None:
        return 0
    if not (page.isascii() and page.isdigit()):
        raise InvalidRequest("Invalid page: use next_page of the last answer", param="page")
    return int(page)


def _matches(intent: Intent, clause: tuple[str, bool, str]) -> bool:
    name, is_meta, value = clause
    if is_meta:
        return intent.meta(name) == value
    return str({"status": intent.status, "currency": intent.currency, "amount": intent.amount}[name]) == value

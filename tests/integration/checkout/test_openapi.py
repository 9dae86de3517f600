"""The OpenAPI document is true: schemathesis reads it and holds the running service to every word of it."""

import asyncio
import copy
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest_asyncio
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import ignored_auth

from services.checkout import app as checkout_app
from shared.web.docs import openapi_of
from tests.integration.checkout.conftest import API_KEY, OPS_KEY, settings_for
from tests.integration.checkout.process import checkout_process
from tests.integration.sandboxes.programs import Payments

Document = dict[str, Any]


@pytest_asyncio.fixture(scope="module")
async def url(checkout_database: str, redis_url: str, payments_server: Payments) -> AsyncIterator[str]:
    async with checkout_process(checkout_database, redis_url, payments_server) as program:
        yield program.url


def described() -> Document:
    """The document of a checkout that was put together and never started: tests are made from it before they run."""

    async def build() -> Document:
        settings = settings_for("postgresql://nobody@localhost/none", "redis://localhost", "http://localhost")
        async with AsyncExitStack() as stack:
            return openapi_of((await checkout_app.build(settings, stack)).http)  # type: ignore[arg-type]

    return asyncio.run(build())


def without_excuses(document: Document) -> Document:
    """A copy in which each operation may answer with what it names only, not with "any other problem"."""
    strict = copy.deepcopy(document)
    for operations in strict["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("default")
    return strict


def what_the_shop_has(document: Document) -> Document:
    """A copy that knows what no schema can: which products there are, their currency, and who takes mail."""
    known = copy.deepcopy(document)
    models = known["components"]["schemas"]
    order = models["OrderIn"]["properties"]
    order["currency"] = {"const": "EUR"}
    order["payment_method"] = {"enum": ["pm_card_visa", "pm_card_mastercard"]}
    order["lines"]["maxItems"] = 1  # of several, none may be repeated
    del order["expected_total"]
    models["LineIn"]["properties"]["quantity"]["maximum"] = 900  # the provider takes eight digits
    models["LineIn"]["properties"]["sku"] = {"enum": [f"SKU-{n:04}" for n in range(1, 1001)]}
    models["CustomerIn"]["properties"]["email"]["pattern"] = "^[a-z]{1,20}@[a-z]{1,20}[.]com$"
    rewind = models["RewindIn"]
    rewind["required"] = ["position"]  # or else a time, but never both
    rewind["properties"]["position"] = {"type": "integer", "minimum": 0, "maximum": 1000}
    del rewind["properties"]["time"]
    models["PartitionsIn"]["properties"]["partitions"]["maximum"] = 2  # each costs relays, and none goes away
    listing = known["paths"]["/v1/orders"]["get"]["parameters"]
    [after] = [one for one in listing if one["name"] == "starting_after"]
    after["schema"] = {"type": "string", "pattern": "^ord_[0-9a-hjkmnp-tv-z]{26}$"}
    return known


def schema_for(document: Document, mode: GenerationMode, examples: int = 15, *, coverage: bool = True) -> BaseSchema:
    generation = GenerationConfig(
        modes=[mode],
        max_examples=examples,
        deterministic=True,
        allow_extra_parameters=False,
        with_security_parameters=False,
    )
    phases = PhasesConfig(coverage=CoveragePhaseConfig(enabled=coverage))
    projects = ProjectsConfig(default=ProjectConfig(generation=generation, phases=phases))
    return schemathesis.openapi.from_dict(document, config=SchemathesisConfig(projects=projects, seed=1))


def takes_nothing(context: Any) -> bool:
    """Whether nothing about the operation could be wrong: a path that leads nowhere is an answer like any other."""
    raw = context.operation.definition.raw
    return "requestBody" not in raw and all(one["in"] == "path" for one in raw.get("parameters", []))


DOCUMENT = described()
valid = schema_for(what_the_shop_has(without_excuses(DOCUMENT)), GenerationMode.POSITIVE)
invalid = schema_for(without_excuses(DOCUMENT), GenerationMode.NEGATIVE)
once = schema_for(what_the_shop_has(DOCUMENT), GenerationMode.POSITIVE, examples=1, coverage=False)


@valid.parametrize()
def test_what_the_document_allows_is_taken_and_answered_as_it_says(case: Case[Any], url: str) -> None:
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = secrets.token_hex(8)  # every request is meant anew
    case.body = with_plain_integers(case.body)
    case.call_and_validate(base_url=url, headers=key_for(case), excluded_checks=[ignored_auth])


@invalid.exclude(takes_nothing).parametrize()
def test_what_the_document_forbids_is_refused_as_it_says(case: Case[Any], url: str) -> None:
    case.call_and_validate(base_url=url, headers=key_for(case), excluded_checks=[ignored_auth])


@once.parametrize()
def test_what_the_document_protects_opens_to_nobody_without_a_key(case: Case[Any], url: str) -> None:
    """By itself, because this check repeats each request with no key and with a wrong one."""
    case.call_and_validate(base_url=url, headers=key_for(case), checks=[ignored_auth])


def with_plain_integers(value: Any) -> Any:
    """For JSON Schema 2.0 is an integer; the service wants it written as one. No schema here has other numbers."""
    if isinstance(value, float):
        return int(value)
    if isinstance(value, dict):
        return {name: with_plain_integers(member) for name, member in value.items()}
    return [with_plain_integers(item) for item in value] if isinstance(value, list) else value


def key_for(case: Case[Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {OPS_KEY if case.path.startswith('/ops') else API_KEY}"}


async def test_the_service_shows_this_very_document(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/openapi.json")).json() == DOCUMENT

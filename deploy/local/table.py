"""What to show people when the platform is ready: where everything is, and a first order to paste."""

from deploy.local.credentials import Credentials
from deploy.local.settings import Settings

FIRST_ORDER = (
    '{"customer": {"email": "ann@example.com", "name": "Ann"}, "currency": "EUR", '
    '"lines": [{"sku": "SKU-0001", "quantity": 2}], "payment_method": "pm_card_visa"}'
)


def summary(settings: Settings, keys: Credentials) -> str:
    return "\n".join((_addresses(settings), "", _keys(settings, keys), "", _first_order(settings, keys), ""))


def _addresses(settings: Settings) -> str:
    url = settings.url
    rows = [
        ("checkout", f"{url('checkout')}/docs", "place orders here"),
        ("email", f"{url('email')}/docs", "what was mailed"),
        ("analytics", f"{url('analytics')}/", "dashboard"),
        ("warehouse", f"{url('warehouse')}/", "board"),
        (
            "payments",
            settings.payments_url or f"{url('payments')}/",
            "sandbox" if not settings.payments_url else "yours",
        ),
        ("mail", settings.smtp_url or f"{url('mail')}/", "inbox" if not settings.smtp_url else "yours"),
        ("postgres", _server(settings, "postgres", settings.postgres_url), "POSTGRES_URL in the env file"),
        ("redis", _server(settings, "redis", settings.redis_url), "REDIS_URL in the env file"),
    ]
    return "\n".join(f"  {name:<10} {address:<34} {note}" for name, address, note in rows)


def _server(settings: Settings, name: str, theirs: str) -> str:
    # An address may hold a password: of yours, only the part behind it is shown.
    return theirs.rpartition("@")[2] if theirs else f"127.0.0.1:{settings.port(name)}"


def _keys(settings: Settings, keys: Credentials) -> str:
    return "\n".join(
        (
            f"  API key    {keys.api_key}",
            f"  ops key    {keys.ops_key}   (the password at /ops of each service)",
            f"  env file   {settings.run_dir / 'env'}   logs   {settings.run_dir / 'logs'}",
        )
    )


def _first_order(settings: Settings, keys: Credentials) -> str:
    return "\n".join(
        (
            "A first order (paste it twice and it is still one order), or `make demo` in another terminal:",
            "",
            f"curl -i {settings.url('checkout')}/v1/orders -H 'Authorization: Bearer {keys.api_key}' \\",
            "  -H 'Idempotency-Key: first-order' -H 'Content-Type: application/json' \\",
            f"  -d '{FIRST_ORDER}'",
        )
    )

"""What people on call see of checkout."""

import base64

from tests.integration.checkout.conftest import OPS_KEY, Shop


async def test_the_ops_page_shows_who_reads_the_log_and_how_far_they_are(shop: Shop) -> None:
    await shop.order()
    login = base64.b64encode(f"me:{OPS_KEY}".encode()).decode()

    page = await shop.http.get("/ops", headers={"Authorization": f"Basic {login}", "Accept": "text/html"})

    assert page.status_code == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
    for service in ("email", "analytics", "warehouse"):
        assert f'<th scope="row">{service}</th>' in page.text
    assert "Every order is final." in page.text


async def test_a_browser_without_the_key_is_asked_for_it(shop: Shop) -> None:
    page = await shop.http.get("/ops", headers={"Accept": "text/html"})

    assert page.status_code == 401
    assert page.headers["WWW-Authenticate"].startswith("Basic")

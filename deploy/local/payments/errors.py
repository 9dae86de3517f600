"""Errors in the shape of the Stripe API.

StripeError             anything answered as {"error": {...}}
├── InvalidRequest      400, the parameters are wrong; nothing was done, nothing is stored for the key
├── Missing             404, no such object
├── Unauthorized        401, the secret key is missing or wrong
├── KeyMismatch         400 idempotency_error, the key was used with other parameters or elsewhere
├── KeyInUse            409, a request with that key is still running
└── TooLarge            413, the body is over the limit
"""

from json import JSONEncoder

encode = JSONEncoder(separators=(",", ":")).encode


class StripeError(Exception):
    status = 500
    type = "api_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    def body(self) -> bytes:
        error = {"type": self.type, "code": self.code, "message": str(self), "param": self.param}
        return error_body({name: value for name, value in error.items() if value is not None})


class InvalidRequest(StripeError):
    status = 400
    type = "invalid_request_error"


class Missing(InvalidRequest):
    status = 404

    def __init__(self, kind: str, object_id: str, param: str = "id") -> None:
        super().__init__(f"No such {kind}: '{object_id}'", code="resource_missing", param=param)


class Unauthorized(InvalidRequest):
    status = 401


class KeyMismatch(StripeError):
    status = 400
    type = "idempotency_error"


class KeyInUse(StripeError):
    status = 409
    type = "idempotency_error"


class TooLarge(InvalidRequest):
    status = 413


def error_body(error: dict[str, str]) -> bytes:
    return encode({"error": error}).encode()

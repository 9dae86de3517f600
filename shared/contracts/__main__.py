"""`python -m shared.contracts` writes the committed documents anew, unless that would break somebody."""

from __future__ import annotations

import sys

from shared.contracts.documents import FOLDER, as_text, documents, refusals


def main() -> None:
    """Write what changed; refuse an incompatible change of a schema that is in use."""
    if refused := refusals():
        sys.exit(
            "\n".join([*refused, "Incompatible: keep what is there, or raise MAJOR in shared/contracts/orders.py."])
        )
    for path, document in documents().items():
        text = as_text(document)
        file = FOLDER / path
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()

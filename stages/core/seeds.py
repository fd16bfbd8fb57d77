"""Seeds of the parts of a run, each from the seed of the whole."""

from __future__ import annotations

import hashlib

SEED_BYTES = 6  # of a derived seed: exact in JSON numbers, whoever reads them


def derived_seed(*parts: object) -> int:
    """Return a seed that follows from all the parts, and differs where one differs.

    Args:
        parts: what the seed follows from; their reprs count.

    Returns:
        A whole number of 48 bits, at least 0.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "big")

"""Seeds of the parts of a run, derived from the run's seed."""

from __future__ import annotations

import hashlib

SEED_BYTES = 6  # of a derived seed, so that any JSON reader holds it exactly


def derived_seed(*parts: object) -> int:
    """Return a seed derived from all parts.

    Args:
        parts: values to derive the seed from; only their reprs count.

    Returns:
        A non-negative integer of 48 bits; different reprs give different seeds, up to collisions of
        the hash.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "big")

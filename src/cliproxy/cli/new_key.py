"""A new client key, and the only form of it that leaves this process towards the gateway."""

from __future__ import annotations

from cliproxy.auth.client_keys import digest_of, generate, proof_of
from cliproxy.secret import Secret


def new_key() -> tuple[Secret, bytes]:
    """Return a new key, to be shown once and wiped, and its digest."""
    secret = generate()
    proof = proof_of(secret.reveal())
    if proof is None:
        raise AssertionError("a generated key has the form of a key")
    return secret, digest_of(proof)

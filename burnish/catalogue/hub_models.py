"""Models on the hub: whether one can be loaded is told at once, not after minutes of retries."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from burnish.errors import InputError

CONFIGS = ("config.json", "adapter_config.json")
TIMEOUT = 3.0
"""Seconds to wait for a connection to each of the hub's addresses."""


def check_hub_model(model: str, *, offline: bool) -> None:
    """Raise InputError if a hub id is neither in the local cache nor can be fetched.

    Without a network, huggingface_hub tries for half a minute before it says so. Behind a proxy it is left to that.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = any(isinstance(try_to_load_from_cache(model, name), str) for name in CONFIGS)
    except HFValidationError as error:
        raise InputError(f"model '{model}' is not a hub id: {error}") from error
    if cached:
        return
    if offline or constants.HF_HUB_OFFLINE:
        raise InputError(
            f"model '{model}' is not in the hub's cache, and nothing may be downloaded; fetch it once without --offline "
            "(and without HF_HUB_OFFLINE), or name a folder or a catalogue model"
        )
    from urllib.request import getproxies  # slow

    try:
        address = urlsplit(constants.ENDPOINT)
        port = address.port or (80 if address.scheme == "http" else 443)
        if not getproxies().keys() & {address.scheme, "all"}:
            socket.create_connection((address.hostname or "", port), TIMEOUT).close()
    except ValueError as error:  # an address or a name that cannot be one
        raise InputError(f"HF_ENDPOINT = '{constants.ENDPOINT}' is not the address of a hub: {error}") from error
    except OSError as error:
        raise InputError(
            f"model '{model}' is neither a folder, a catalogue model nor in the hub's cache, and the hub cannot be "
            f"reached ({error.strerror or error}); name one of those"
        ) from error

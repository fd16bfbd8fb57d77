"""Addresses of servers, and what of them is secret.

`http://USER:PASSWORD@HOST/v1?api_key=K` is an address. Its secrets are sent to the server. They
stand in no artifact, log or error.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stages.errors import InputError

HIDDEN = "***"  # in the place of a secret
PRIVATE = "restart-command"  # an option whose value may hold anything
ADDRESS = re.compile(r"\S*://\S*|[^\s:@]+:\S+@\S+")  # in a text; some forget the scheme
SECRET_NAME = re.compile(r"auth|cred|key|pass|secret|sig|token", re.IGNORECASE)  # of a parameter


def shown(url: str) -> str:
    """Return a URL without its user, password and query.

    Where it can't be told what they are, nothing after `://` is shown.
    """
    scheme, mark, rest = url.rpartition("://") if url.count("://") == 1 else url.partition("://")
    if not mark:
        scheme, rest = "", url
    user, at, place = rest.rpartition("@")
    if re.search(r"[?#]", user):  # the `@` may be a password's, or the query's
        return f"{scheme}{mark}{HIDDEN}"
    place, query, _ = re.sub("[?#]", "?", place).partition("?")
    return f"{scheme}{mark}{HIDDEN + at if at else ''}{place}{query}{HIDDEN if query else ''}"


def without_secrets(value: Any) -> Any:
    """Return a text with its addresses as they may be shown; of a list or mapping, all its texts.

    A list may be a command line, a mapping the options of one: of PRIVATE nothing is shown.
    """
    if isinstance(value, str):
        return ADDRESS.sub(lambda url: shown(url[0]), value)
    if isinstance(value, dict):
        return {
            key: HIDDEN if key == PRIVATE else without_secrets(part) for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            HIDDEN if before == f"--{PRIVATE}" else without_secrets(part)
            for before, part in zip(("", *value), value, strict=False)
        ]
    return value


@dataclass(frozen=True)
class Address:
    """Where a server is, apart from what it must not be called by in public.

    Attributes:
        url: of the server, without user, password and query.
        query: that goes with every request; "": none.
        authorization: header of the user and password; None: there are none.
        secrets: texts that must not be shown.
    """

    url: str
    query: str = ""
    authorization: str | None = None
    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, base_url: str, where: str) -> Address:
        """Read a base URL.

        Args:
            base_url: up to and with `/v1`, maybe with user, password and query.
            where: the option that gave it, for errors.

        Raises:
            InputError: it is no address of a server.
        """
        try:
            parts = urlsplit(base_url)
            host, _ = parts.hostname, parts.port  # raises where it is no number
        except ValueError:
            raise not_an_address(base_url, where) from None
        if not host or parts.scheme not in ("http", "https") or re.search(r"\s", base_url):
            raise not_an_address(base_url, where)
        place = parts.netloc.rpartition("@")[2]
        url = f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
        query = quote(parts.query, safe="%!$&'()*+,;=:@/?-._~[]")
        hidden = _secret_values(query)
        user, password = (unquote(text or "") for text in (parts.username, parts.password))
        if not (user or password):
            return cls(url, query, None, hidden)
        basic = b64encode(f"{user}:{password}".encode()).decode()
        own = (parts.password or parts.username or "", password or user, basic)
        return cls(url, query, f"Basic {basic}", (*filter(None, own), *hidden))


def not_an_address(base_url: str, where: str) -> InputError:
    """Return the error of a base URL that no server can have."""
    what = f"'{shown(base_url)}' is no address of a server"
    return InputError(where, what, "write http://HOST:PORT/v1")


def _secret_values(query: str) -> tuple[str, ...]:
    """The values of a query that are secrets by their names, as they are written and as meant."""
    secrets: list[str] = []
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals:  # it has no name
            name, value = "key", part
        if value and SECRET_NAME.search(name):
            secrets += [value, unquote(value)]
    return tuple(secrets)

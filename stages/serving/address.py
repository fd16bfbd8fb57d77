"""Addresses of servers and the secrets in them.

`http://USER:PASSWORD@HOST/v1?api_key=K` is an address. Its secrets are sent to the server and must
not appear in any artifact, log or error.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stages.errors import InputError

HIDDEN = "***"  # replaces a secret
PRIVATE = "restart-command"  # option whose value may contain anything
ADDRESS = re.compile(r"\S*://\S*|[^\s:@]+:\S+@\S+")  # in a text, also without a scheme
SECRET_NAME = re.compile(r"auth|cred|key|pass|secret|sig|token", re.IGNORECASE)  # query parameters


def shown(url: str) -> str:
    """Return a URL with its user, password and query hidden.

    If these can't be identified, everything after `://` is hidden.

    Args:
        url: any text, normally a URL.

    Returns:
        The URL with *** for each hidden part.
    """
    scheme, mark, rest = url.rpartition("://") if url.count("://") == 1 else url.partition("://")
    if not mark:
        scheme, rest = "", url
    user, at, place = rest.rpartition("@")
    if re.search(r"[?#]", user):  # the `@` may belong to a password or to the query
        return f"{scheme}{mark}{HIDDEN}"
    place, query, _ = re.sub("[?#]", "?", place).partition("?")
    return f"{scheme}{mark}{HIDDEN + at if at else ''}{place}{query}{HIDDEN if query else ''}"


def without_secrets(value: Any) -> Any:
    """Return a value with the secrets of all addresses in its texts hidden.

    A list may be a command line and a mapping its options; the value of PRIVATE is hidden entirely.

    Args:
        value: a text, or a list or mapping of values; other values are returned unchanged.

    Returns:
        A value of the same shape.
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
    """The address of a server, split into a public URL and its secrets.

    Attributes:
        url: URL of the server, without user, password and query.
        query: query that is sent with every request; "": none.
        authorization: Authorization header for user and password; None: there are none.
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
            base_url: base URL up to and including `/v1`, possibly with user, password and query.
            where: the option that gave it, for errors.

        Returns:
            The address.

        Raises:
            InputError: the URL is not the address of a server.
        """
        try:
            parts = urlsplit(base_url)
            host, _ = parts.hostname, parts.port  # raises ValueError if the port is not a number
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
    """Return the error for a base URL that is not the address of a server.

    Args:
        base_url: the URL.
        where: the option that gave it.

    Returns:
        The error, with secrets hidden.
    """
    what = f"'{shown(base_url)}' is no address of a server"
    return InputError(where, what, "write http://HOST:PORT/v1")


def _secret_values(query: str) -> tuple[str, ...]:
    """Return the values of a query whose names suggest a secret, as written and unquoted."""
    secrets: list[str] = []
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals:  # it has no name
            name, value = "key", part
        if value and SECRET_NAME.search(name):
            secrets += [value, unquote(value)]
    return tuple(secrets)

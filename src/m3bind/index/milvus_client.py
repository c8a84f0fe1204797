"""The client of Milvus: parses URIs and converts errors.

* `parse_uri`, `connect`, `Client`.
"""

import logging
import os
import re
from typing import Any

from m3bind.errors import ConfigError, SpaceError

TOKEN = "M3BIND_MILVUS_TOKEN"


def parse_uri(uri: str) -> tuple[str, str, bool]:
    """(argument of the Milvus client, name of the collection, whether it is a file) of a URI.

    Raises:
        ConfigError: not a URI of an index in Milvus.
    """
    match = re.fullmatch(r"milvus(?::(?P<file>[^#]+\.db)|\+(?P<server>https?://[^#]+))(?:#(?P<name>\w+))?", uri)
    if not match:
        raise ConfigError(f"{uri}: write milvus:FILE.db#COLLECTION or milvus+http://HOST:PORT#COLLECTION")
    return match["file"] or match["server"], match["name"] or "m3bind", bool(match["file"])


class Client:
    """The Milvus client or one of its iterators; its errors, which may quote data, become `SpaceError`."""

    def __init__(self, own: Any, uri: str) -> None:
        self._own, self._uri = own, uri

    def __getattr__(self, name: str) -> Any:
        from pymilvus.exceptions import MilvusException

        method = getattr(self._own, name)

        def call(*args: Any, **settings: Any) -> Any:
            try:
                answer = method(*args, **settings)
            except MilvusException as error:
                hint = "check that it is running and that its disk has space; see its log"
                raise SpaceError(f"{self._uri}: Milvus could not do {name} (code {error.code}); {hint}") from error
            return Client(answer, self._uri) if name == "query_iterator" else answer

        return call


def connect(uri: str) -> tuple[Any, str, bool]:
    """(client, collection, whether it is a file).

    Raises:
        ConfigError: the extra `milvus` is not installed, or an invalid URI.
        SpaceError: Milvus does not answer.
    """
    target, name, local = parse_uri(uri)
    try:
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ImportError:
        raise ConfigError("an index in Milvus needs the extra `milvus`: pip install 'm3bind[milvus]'") from None
    logging.getLogger("pymilvus.client.iterator").setLevel(logging.ERROR)  # Milvus Lite has no time stamps
    try:
        return Client(MilvusClient(target, token=os.environ.get(TOKEN, "")), uri), name, local
    except MilvusException as error:
        hint = "another process may have it open" if local else "check the server and the token"
        raise SpaceError(f"{uri}: Milvus does not answer ({error.message}); {hint}") from error

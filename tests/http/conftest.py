from collections.abc import Callable, Iterator

import openai
import pytest
from daemon import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A daemon with default settings, shared by the tests of a file."""
    server = Server()
    try:
        yield server
        server.stop()
    finally:
        server.kill()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts daemons with flags of the test's own; each must end well, if it was not ended."""
    servers = []

    def start_one(*flags: str, **settings) -> Server:
        servers.append(Server(*flags, **settings))
        return servers[-1]

    try:
        yield start_one
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return server.client()

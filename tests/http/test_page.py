"""The chat page that GET / shows."""

import re

from daemon import Server


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(server: Server) -> None:
    reply = server.get("/")
    page = reply.body.decode()
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert server.request("HEAD", "/").headers["Content-Length"] == str(len(reply.body))


def test_only_the_root_is_the_page(server: Server) -> None:
    assert server.get("/index.html").status == 404
    assert server.post("/", {}).status == 405

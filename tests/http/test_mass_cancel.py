"""More sequences cancelled at once than the engine's event queue holds."""

from daemon import COMPLETIONS, Server, wait_until


def test_a_crowd_that_leaves_together_is_cancelled(start) -> None:
    # The queue holds 4 * 2 + 64 events; 300 choices leave in one moment.
    server: Server = start("--max-num-seqs", "2", "--max-queue", "400")
    socks = [
        server.send(COMPLETIONS, prompt="One", n=60, max_tokens=4000, ignore_eos=True)
        for _ in range(5)
    ]
    wait_until(lambda: server.running() == 2 and server.waiting() == 298, "all are in")
    for sock in socks:
        sock.close()
    wait_until(server.is_idle, "all are cancelled")
    assert server.text(prompt="One", max_tokens=3, ignore_eos=True)

"""Ports for groups of processes that tests start."""

import random
import socket


def free_port():
    """A port that nobody listens at, below those that the system hands out to others in the meantime."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port

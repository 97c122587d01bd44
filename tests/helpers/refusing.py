"""Processes that refuse themselves the network, or writing to a folder, whoever they run as.

Python reports what it opens and connects to ("audit events"): there such a process notes the try
and raises, and at its end it fails where anything was tried, also if a library swallowed the error.
"""

import os
import subprocess
import sys

NETWORK = """
import sys
tried = []
NAMES = {"socket.getaddrinfo", "socket.gethostbyname"}
def refuse(event, arguments):
    to_address = event in ("socket.connect", "socket.sendto")
    if event in NAMES or (to_address and not isinstance(arguments[1], (str, bytes))):
        tried.append((event, *map(str, arguments)))  # a path is a socket of this machine
        raise OSError(f"no network here: {event} {arguments}")
sys.addaudithook(refuse)
"""

WRITING = """
import os, sys
tried = []
FOLDER = os.path.realpath(os.environ["REFUSED_FOLDER"])
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.utime"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def refuse(event, arguments):
    writes = event in EVENTS or (event == "open" and isinstance(arguments[2], int)
                                 and arguments[2] & WRITES)
    if not writes or not isinstance(arguments[0], (str, os.PathLike)):
        return
    path = os.path.realpath(arguments[0])
    if path.startswith(FOLDER) and not (event == "os.mkdir" and os.path.isdir(path)):
        tried.append((event, path))
        raise OSError(30, "Read-only file system", path)
sys.addaudithook(refuse)
"""

END = """
assert not tried, tried
print("ended well")
"""


def run_refusing(hook, script, *arguments, **variables):
    """Run `script` in a process of its own under `hook`; -> what it printed.

    variables: of its environment; None removes one.
    """
    env = {key: value for key, value in (os.environ | variables).items() if value is not None}
    command = [sys.executable, "-c", hook + script + END, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("ended well\n")
    return done.stdout

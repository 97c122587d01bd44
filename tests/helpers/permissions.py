"""Files that even root may not read while a test looks at them."""

import ctypes
from contextlib import contextmanager

VERSION = 0x20080522  # of the structures of capget and capset (linux/capability.h)
OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def without_override(path):
    """No permission at all for a file or folder, nor the right to pass over that."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(VERSION, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    assert libc.capget(head, held) == 0
    dropped = (ctypes.c_uint32 * 6)(*held)
    dropped[0] &= ~OVERRIDE
    mode = path.stat().st_mode
    path.chmod(0)
    assert libc.capset(head, dropped) == 0
    try:
        yield
    finally:
        libc.capset(head, held)
        path.chmod(mode)

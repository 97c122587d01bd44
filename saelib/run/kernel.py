"""The process that executes a notebook: this Python, whatever kernels the user has installed.

Jupyter looks a kernel up by its name, `python3`, in the user's folders too, where it may be another
Python's, without this package or with another version of it.
"""

from __future__ import annotations

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from saelib.text.child import python


class OwnKernel(AsyncKernelManager):
    """Starts the Python that runs now as the kernel, without looking for one by name."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """How to start it."""
        argv = python("-m", "ipykernel_launcher", "-f", "{connection_file}")
        return KernelSpec(argv=argv, display_name="Python 3", language="python")

"""Types of fixtures, for tests to name."""

import subprocess
from collections.abc import Callable

Vtnpipe = Callable[..., "subprocess.CompletedProcess[str]"]

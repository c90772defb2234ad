"""Faults of decoder processes: Python imports this module when a process of the tests starts.

If VTNPIPE_TEST_BAD is `hang=NAME,kill=NAME`, a decoder process hangs, or kills itself, when it
opens a file of that name.
"""

import os
import signal
import sys
import time

if bad := os.environ.get("VTNPIPE_TEST_BAD"):
    ACTIONS = {
        "hang": lambda: time.sleep(10_000),
        "kill": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    }
    BAD = {name: ACTIONS[what] for what, _, name in (one.partition("=") for one in bad.split(","))}

    def _on_event(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and "vtnpipe.extract.decode.process" in sys.modules:
            name = os.path.basename(str(arguments[0]))  # noqa: PTH119
            if name in BAD:
                BAD[name]()

    sys.addaudithook(_on_event)

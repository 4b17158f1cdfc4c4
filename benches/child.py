"""Runs one program and prints as JSON how long it took and how much memory it had at most.

    python -I -S benches/child.py [--fsync FILE] PROGRAM ARGUMENT...

A process of its own, and with few modules: the system counts as a program's peak what the process
that started it had, which would be a lot for one with numpy. `--fsync` is for programs that do not
wait for the disk: the time runs until the file is there.
"""

import json
import os
import sys
import time

arguments = sys.argv[1:]
wait_for = None
if arguments[0] == "--fsync":
    wait_for = arguments[1]
    del arguments[:2]

silence = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
start = time.perf_counter()
pid = os.posix_spawnp(arguments[0], arguments, os.environ, file_actions=silence)
_, status, usage = os.wait4(pid, 0)
if wait_for and status == 0:
    file = os.open(wait_for, os.O_RDWR)
    os.fsync(file)
    os.close(file)
seconds = time.perf_counter() - start

if status != 0:
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"seconds": seconds, "peak_bytes": usage.ru_maxrss * unit}))

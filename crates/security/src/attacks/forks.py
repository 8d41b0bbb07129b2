# Forks without end, at the highest priority there is.
import os
import sys

os.setpriority(os.PRIO_PROCESS, 0, -20)
count = 0
while True:
    try:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    pass
        count += 1
    except OSError:
        pass
    if count == 20:
        print(f"DID forks={count}")
        sys.stdout.flush()

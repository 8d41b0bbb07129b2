# Forks without end, at the highest priority there is.
import os
import signal
import time

count = 0
while count < 20:
    if os.fork() == 0:
        signal.pause()
    count += 1
print(f"DID forks={count}", flush=True)
# From here on nothing else gets its turn: what was printed has to be on its way before.
time.sleep(5)
os.setpriority(os.PRIO_PROCESS, 0, -20)
while True:
    try:
        os.fork()
    except OSError:
        pass

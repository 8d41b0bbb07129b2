# Sends small packets to an address that it must not reach, for a minute, as fast as it can, each with its time.
import socket
import time

sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        sender.sendto(b"x", ("@ADDRESS@", @PORT@))
        sent += 1
    except OSError:
        pass
    if sent == 1:
        print("SENDING", flush=True)
print(f"DID unfiltered={sent}")

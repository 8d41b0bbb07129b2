# Floods the network for 20 s: packets to nobody, packets without a sense, and connections that nobody takes.
import os
import random
import socket
import time

count = 0
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setblocking(False)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
interface = next(name for name in os.listdir("/sys/class/net") if name != "lo")
packet.bind((interface, 0))
held = []
end = time.monotonic() + 20
while time.monotonic() < end:
    for _ in range(50):
        try:
            udp.sendto(random.randbytes(1200), ("10.0.2.2", random.randrange(1, 65536)))
            raw.sendto(random.randbytes(64), ("10.0.2.3", 0))
            packet.send(random.randbytes(random.randrange(14, 1400)))
            count += 3
        except OSError:
            pass
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    connection.connect_ex(("10.0.2.2", 9))
    held.append(connection)
    count += 1
    if len(held) > 800:
        for connection in held:
            connection.close()
        held.clear()
print(f"DID network={count}")

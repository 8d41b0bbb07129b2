# Tries to reach one address after the other, by every protocol, and says what came of it. Somebody who is
# reached answers with its address.
import errno
import os
import socket
import struct
import time

TARGETS = """
@TARGETS@
""".split()
ANSWER_S = 3


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address, port):
    with socket.socket(family(address), socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect((address, port))
        return connection.recv(64)


def udp(address, port):
    with socket.socket(family(address), socket.SOCK_DGRAM) as asker:
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asker.settimeout(ANSWER_S)
        asker.sendto(b"who are you", (address, port))
        return asker.recv(64)


def ping(address, _):
    if ":" in address:
        kind, protocol, request, reply, header = socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, 0
    else:
        kind, protocol, request, reply, header = socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, 20
    with socket.socket(kind, socket.SOCK_RAW, protocol) as pinger:
        pinger.settimeout(ANSWER_S)
        message = struct.pack("!BBHHH", request, 0, 0, os.getpid() & 0xFFFF, 1) + b"forrest!"
        total = sum(struct.unpack("!8H", message))
        total = (total & 0xFFFF) + (total >> 16)
        message = message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]
        pinger.sendto(message, (address, 0))
        end = time.monotonic() + ANSWER_S
        while time.monotonic() < end:
            packet, sender = pinger.recvfrom(256)
            if packet[header] == reply and sender[0].split("%")[0] == address:
                return b"pong"
        raise TimeoutError


def what_came(probe, address, port):
    try:
        return "answered:" + probe(address, port).decode(errors="replace").strip().replace(" ", "_")
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno, "error")


for target in TARGETS:
    port, address = target.split("/")
    for probe in (tcp, udp, ping):
        print(f"PROBE {target} {probe.__name__} {what_came(probe, address, int(port))}", flush=True)
print("DID egress=all")

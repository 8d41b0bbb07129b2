# Floods the virtio-serial port for 20 s. It can be open once only, so the file descriptor of the program
# that has it is taken over.
import ctypes
import os
import time

PIDFD_OPEN, PIDFD_GETFD = 434, 438
libc = ctypes.CDLL(None, use_errno=True)


def taken_over():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/dev/vport"):
                    process = libc.syscall(PIDFD_OPEN, int(pid), 0)
                    return libc.syscall(PIDFD_GETFD, process, int(fd), 0)
        except OSError:
            pass
    return None


port = taken_over()
if port is None or port < 0:
    raise SystemExit(f"no port: {port}, {os.strerror(ctypes.get_errno())}")
os.set_blocking(port, False)
lines = [
    b"ready\n", b"time?\n", b"runner-started\n", b"runner-exited 0\n", b"error \x1b]0;pwned\x07\xe2\x80\xae\n",
    b"error " + b"x" * 5000 + b"\n", b"\xff\x00\n", b"y" * 3000, b"\n" * 500,
]
written = n = 0
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        written += os.write(port, lines[n % len(lines)])
        n += 1
    except BlockingIOError:
        # The host makes it wait: that is the point.
        time.sleep(0.01)
print(f"DID port={written}")

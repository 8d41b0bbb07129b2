# Floods the console for 20 s: text, escape sequences for terminals, and bytes that are neither.
import os
import time

console = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
piece = b"\x1b]0;pwned\x07\x1b[2J\x1b]52;c;cHduZWQ=\x07\xff\xfe\x9b31m\xe2\x80\xaeevil\r\n" * 40
written = 0
end = time.monotonic() + 20
while time.monotonic() < end:
    written += os.write(console, piece)
print(f"DID console={written}")

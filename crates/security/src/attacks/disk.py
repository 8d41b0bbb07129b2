# Fills the disk until there is no space left, with what does not compress and has no holes.
import os

piece = os.urandom(4 << 20)
written = 0
file = os.open("/fill", os.O_WRONLY | os.O_CREAT, 0o600)
try:
    while True:
        written += os.write(file, piece)
except OSError as error:
    print(f"{error} after {written} bytes")
os.sync()
print(f"DID disk={written}")
# Whatever the runner still has to write needs some room.
os.ftruncate(file, written - (64 << 20))

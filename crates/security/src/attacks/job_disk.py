# Writes all over the job-config disk for 20 s, and tries to write beyond its end.
import glob
import os
import random
import time

name = next(
    path.split("/")[4]
    for path in glob.glob("/sys/class/block/vd*/serial")
    if open(path).read().strip() == "job-config"
)
disk = os.open(f"/dev/{name}", os.O_WRONLY | os.O_SYNC)
size = os.lseek(disk, 0, os.SEEK_END)
written = 0
end = time.monotonic() + 20
while time.monotonic() < end:
    length = min(size, 1 << random.randrange(9, 17))
    at = random.randrange(0, size - length + 1) & ~511
    written += os.pwrite(disk, random.randbytes(length), at)
try:
    os.pwrite(disk, b"x" * 512, size + (1 << 20))
    print("it can be written beyond its end")
except OSError as error:
    print(f"beyond the end of {size} bytes: {error}")
    print(f"DID job-disk={written}")

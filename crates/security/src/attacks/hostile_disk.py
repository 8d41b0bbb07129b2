# Leaves a file system behind that no honest guest would, where the host looks for the persistence token.
import base64
import glob
import os
import subprocess
import time

image = base64.b64decode("@IMAGE@")
# The guest's own program is about to wipe the registration; it should not wipe this.
time.sleep(3)
subprocess.run(["umount", "--lazy", "/home/runner/config"], check=True)
name = next(
    path.split("/")[4]
    for path in glob.glob("/sys/class/block/vd*/serial")
    if open(path).read().strip() == "job-config"
)
with open(f"/dev/{name}", "r+b", buffering=0) as disk:
    size = disk.seek(0, os.SEEK_END)
    disk.seek(0)
    content = (image + bytes(size))[:size]
    disk.write(content)
    os.fsync(disk)
    disk.seek(0)
    if disk.read(len(image)) == image:
        print(f"DID hostile-disk={len(image)}")

//! The stories of the README with real guests: the real daemon, the real QEMU, a real Debian; only
//! GitHub and its runner are stand-ins.

mod bad_guests;
mod full_disk;
mod out_of_memory;
mod restarts;
mod scene;
mod seed;
mod snapshots;

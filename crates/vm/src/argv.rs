//! QEMU's arguments. Pure: the same description gives the same arguments.
//!
//! Cold, template and restored guests get the same machine, device by device and slot by slot; only
//! the backing of the RAM differs, and a restored guest waits for its state. That is what makes a
//! template's state loadable.
//!
//! QEMU opens no file of Forrest's by name, nor could it: it gets them open, from the shim. In its
//! arguments they are `/dev/fdset/N` for disks and states, and `/proc/self/fd/N` for the RAM and shared
//! directories, which QEMU opens in plainer ways.
//!
//! Why the arguments are as they are:
//! - Everything starts stopped (`-S`): events before the monitor is listened to would be lost.
//! - End states stay readable over QMP (`-action …=pause`) until the shim has seen them.
//! - The disk ignores flushes: a run's disk is worth nothing until it is promoted, and the promotion
//!   makes it durable. A full host disk pauses the VM (`werror=stop`).
//! - Monitor, console and guest port are sockets that the shim hands over open, so nobody else can
//!   get at them and nothing has to be waited for. The shell's socket has a name, of the shim's making.
//! - The MAC address is the same for all guests, each of which is alone on its own network: images
//!   that remember it keep working, and so do clones of one template.
//! - A guest cannot put itself to sleep (S3, S4): nobody would wake it.

use std::ffi::OsString;
use std::os::fd::RawFd;

use forrest_core::model::Bytes;
use serde_json::{Value, json};

use crate::spec::{Accel, Boot, DiskFormat, RunSpec, SharedDir};

/// The name of the guest's virtio-serial port.
pub const GUEST_PORT: &str = "org.forrest.guest";
/// Free hot-plug slots of every machine.
pub const ROOT_PORTS: usize = 2;
/// The most that QEMU keeps of translated guest code under emulation.
pub const TCG_CACHE: Bytes = Bytes::mib(128);
/// The serial numbers by which a guest finds its disks (`/dev/disk/by-id/virtio-<serial>`).
pub mod serial {
    /// The disk that the guest boots from.
    pub const DISK: &str = "disk";
    /// The disk with `CIDATA`.
    pub const CLOUD_INIT: &str = "cloud-init";
    /// The disk with `JOBDATA`.
    pub const JOB_CONFIG: &str = "job-config";
}

const MAC: &str = "52:54:00:46:52:53";

/// Slots on `pcie.0`; `q35` itself uses 0x00 and 0x1f. Part of a template's state: a change here makes
/// existing templates useless.
mod slot {
    pub const NET: u8 = 0x02;
    pub const DISK: u8 = 0x03;
    pub const CLOUD_INIT: u8 = 0x04;
    pub const JOB_CONFIG: u8 = 0x05;
    pub const PORTS: u8 = 0x06;
    pub const RNG: u8 = 0x07;
    pub const PVPANIC: u8 = 0x08;
    pub const ROOT_PORTS: u8 = 0x09;
    pub const SHARED: u8 = 0x10;
}

/// What the shim hands to QEMU open, as numbers of file descriptors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wiring {
    /// The monitor.
    pub qmp: RawFd,
    /// The first serial port.
    pub console: RawFd,
    /// The guest port.
    pub guest: RawFd,
    /// The second serial port, listening.
    pub shell: RawFd,
    /// The guest's disk, to read and write.
    pub disk: RawFd,
    /// What the disk is built on, the nearest first, to read.
    pub backing: Vec<RawFd>,
    /// `CIDATA`, to read.
    pub cloud_init: RawFd,
    /// `JOBDATA`, to read and write.
    pub job_config: RawFd,
    /// The RAM of a template to be made, to read and write; of a template to start from, to read.
    pub ram: Option<RawFd>,
    /// The devices' state of a template to be made, to write; of a template to start from, to read.
    pub state: Option<RawFd>,
    /// The shared directories, in order.
    pub shared: Vec<RawFd>,
}

/// QEMU's names for what it is handed (`-add-fd`), as numbers of sets.
mod set {
    pub const DISK: usize = 0;
    pub const CLOUD_INIT: usize = 1;
    pub const JOB_CONFIG: usize = 2;
    pub const STATE: usize = 3;
    pub const BACKING: usize = 16;
}

/// What QEMU opens for the devices' state of a template, when it is told to save or load one.
pub fn state_file() -> String {
    set_file(set::STATE)
}

fn set_file(set: usize) -> String {
    format!("/dev/fdset/{set}")
}

/// For what QEMU opens with nothing but the system call.
fn fd_file(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

/// The arguments for QEMU, without the program itself.
pub fn qemu_args(spec: &RunSpec, wiring: &Wiring) -> Vec<OsString> {
    let mut args = Args(Vec::new());
    machine(&mut args, spec);
    memory(&mut args, spec, wiring);
    behaviour(&mut args, spec);
    serial_ports(&mut args, wiring);
    network(&mut args, spec);
    hand_over(&mut args, wiring);
    disks(&mut args, spec);
    guest_port(&mut args, wiring);
    small_devices(&mut args);
    for (i, (dir, fd)) in spec.shared.iter().zip(&wiring.shared).enumerate() {
        shared_dir(&mut args, i, dir, *fd);
    }
    if let Boot::Restored { .. } = spec.boot {
        args.pair("-incoming", "defer");
    }
    args.0
}

/// RAM in the unit that both sides of QEMU agree on.
pub fn ram_bytes(spec: &RunSpec) -> u64 {
    const MIB: u64 = 1 << 20;
    spec.ram.0.div_ceil(MIB).saturating_mul(MIB)
}

struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.pair(name, value.to_string());
    }

    fn device(&mut self, driver: &str, id: &str, slot: u8, properties: Value) {
        let mut device = json!({
            "driver": driver, "id": id, "bus": "pcie.0", "addr": format!("{slot:#04x}"),
        });
        merge(&mut device, properties);
        self.json("-device", &device);
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn machine(args: &mut Args, spec: &RunSpec) {
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.flag("-S");
    args.pair("-name", format!("guest={}", spec.runner));
    args.pair("-uuid", spec.uuid.to_string());
    args.pair("-machine", "q35,memory-backend=ram,dump-guest-core=off,vmport=off");
    match spec.accel {
        Accel::Kvm => {
            args.pair("-accel", "kvm");
            args.pair("-cpu", "host");
        }
        Accel::Tcg => {
            let cache_mib = TCG_CACHE.0 >> 20;
            args.pair("-accel", format!("tcg,thread=multi,tb-size={cache_mib}"));
            args.pair("-cpu", "max");
        }
    }
    args.pair("-smp", spec.cpus.to_string());
    for sleep in ["disable_s3", "disable_s4"] {
        args.pair("-global", format!("ICH9-LPC.{sleep}=1"));
    }
}

fn memory(args: &mut Args, spec: &RunSpec, wiring: &Wiring) {
    let size = ram_bytes(spec);
    let file = wiring.ram.map(fd_file);
    args.pair("-m", format!("size={size}B"));
    let backend = match &spec.boot {
        Boot::Cold => json!({ "qom-type": "memory-backend-ram" }),
        Boot::Template { .. } => json!({
            "qom-type": "memory-backend-file", "mem-path": file, "share": true,
        }),
        // Opened for reading only and mapped privately: nothing can reach the template's file.
        Boot::Restored { .. } => json!({
            "qom-type": "memory-backend-file", "mem-path": file, "share": false,
            "readonly": true, "rom": "off",
        }),
    };
    let mut object = json!({ "id": "ram", "size": size });
    merge(&mut object, backend);
    args.json("-object", &object);
}

fn behaviour(args: &mut Args, spec: &RunSpec) {
    args.pair("-display", "none");
    args.pair("-boot", "strict=on");
    args.pair("-rtc", "base=utc,clock=host");
    args.pair("-action", "reboot=shutdown,shutdown=pause,panic=pause");
    args.pair("-msg", "timestamp=off");
    if spec.confinement.sandbox {
        args.pair("-sandbox", SANDBOX);
    }
}

/// What QEMU denies itself.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

fn serial_ports(args: &mut Args, wiring: &Wiring) {
    args.pair("-chardev", format!("socket,id=qmp,fd={}", wiring.qmp));
    args.pair("-mon", "chardev=qmp,mode=control");
    args.pair("-chardev", format!("socket,id=console,fd={}", wiring.console));
    args.json("-device", &json!({ "driver": "isa-serial", "chardev": "console", "index": 0 }));
    args.pair("-chardev", format!("socket,id=shell,fd={},server=on,wait=off", wiring.shell));
    args.json("-device", &json!({ "driver": "isa-serial", "chardev": "shell", "index": 1 }));
}

fn network(args: &mut Args, spec: &RunSpec) {
    let restrict = if spec.network.isolated { "on" } else { "off" };
    args.pair("-netdev", format!("user,id=net0,restrict={restrict}"));
    // No option ROM: nobody boots from the network, and the firmware starts sooner. A restored guest need
    // not announce itself either: nobody else is on its network.
    let properties =
        json!({ "netdev": "net0", "mac": MAC, "romfile": "", "guest_announce": false });
    args.device("virtio-net-pci", "net0", slot::NET, properties);
}

fn hand_over(args: &mut Args, wiring: &Wiring) {
    let mut add = |set: usize, fd: RawFd, what: &str| {
        args.pair("-add-fd", format!("fd={fd},set={set},opaque={what}"));
    };
    add(set::DISK, wiring.disk, serial::DISK);
    add(set::CLOUD_INIT, wiring.cloud_init, serial::CLOUD_INIT);
    add(set::JOB_CONFIG, wiring.job_config, serial::JOB_CONFIG);
    if let Some(fd) = wiring.state {
        add(set::STATE, fd, "state");
    }
    for (i, fd) in wiring.backing.iter().enumerate() {
        add(set::BACKING + i, *fd, "backing");
    }
}

fn disks(args: &mut Args, spec: &RunSpec) {
    for (i, layer) in spec.disk.backing.iter().enumerate().rev() {
        let below = (i + 1 < spec.disk.backing.len()).then(|| backing_node(i + 1));
        let node =
            Node { id: &backing_node(i), set: set::BACKING + i, format: layer.format, below };
        block(args, &node, Access::Read);
    }
    let below = (!spec.disk.backing.is_empty()).then(|| backing_node(0));
    let disk = Node { id: serial::DISK, set: set::DISK, format: spec.disk.format, below };
    block(args, &disk, Access::Boot);
    disk_device(args, serial::DISK, Access::Boot, slot::DISK);
    let raw = |id, set| Node { id, set, format: DiskFormat::Raw, below: None };
    block(args, &raw(serial::CLOUD_INIT, set::CLOUD_INIT), Access::Read);
    disk_device(args, serial::CLOUD_INIT, Access::Read, slot::CLOUD_INIT);
    block(args, &raw(serial::JOB_CONFIG, set::JOB_CONFIG), Access::Write);
    disk_device(args, serial::JOB_CONFIG, Access::Write, slot::JOB_CONFIG);
}

fn backing_node(index: usize) -> String {
    format!("backing{index}")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Boot,
    Read,
    Write,
}

/// An image as QEMU knows it.
struct Node<'a> {
    id: &'a str,
    set: usize,
    format: DiskFormat,
    /// The node that an overlay is built on.
    below: Option<String>,
}

fn block(args: &mut Args, node: &Node<'_>, access: Access) {
    let read_only = access == Access::Read;
    let file = format!("{}-file", node.id);
    let cache = json!({ "direct": false, "no-flush": true });
    args.json(
        "-blockdev",
        &json!({
            "driver": "file", "node-name": file, "filename": set_file(node.set),
            "read-only": read_only, "cache": cache, "discard": "unmap",
        }),
    );
    let mut image = json!({
        "node-name": node.id, "file": file, "read-only": read_only,
        "cache": cache, "discard": "unmap",
        "detect-zeroes": if read_only { "off" } else { "unmap" },
    });
    let format = match node.format {
        DiskFormat::Raw => json!({ "driver": "raw" }),
        // Never what the image's header says.
        DiskFormat::Qcow2 => json!({ "driver": "qcow2", "backing": node.below }),
    };
    merge(&mut image, format);
    args.json("-blockdev", &image);
}

fn disk_device(args: &mut Args, id: &str, access: Access, slot: u8) {
    let mut properties = json!({ "drive": id, "serial": id, "werror": "stop", "rerror": "report" });
    if access == Access::Boot {
        merge(&mut properties, json!({ "bootindex": 0 }));
    }
    args.device("virtio-blk-pci", id, slot, properties);
}

fn guest_port(args: &mut Args, wiring: &Wiring) {
    args.device("virtio-serial-pci", "ports", slot::PORTS, json!({ "max_ports": 2 }));
    args.pair("-chardev", format!("socket,id=guest,fd={}", wiring.guest));
    args.json(
        "-device",
        &json!({
            "driver": "virtserialport", "bus": "ports.0", "nr": 1, "chardev": "guest",
            "name": GUEST_PORT,
        }),
    );
}

fn small_devices(args: &mut Args) {
    args.json("-object", &json!({ "qom-type": "rng-builtin", "id": "rng" }));
    args.device("virtio-rng-pci", "rng0", slot::RNG, json!({ "rng": "rng" }));
    args.device("pvpanic-pci", "panic0", slot::PVPANIC, json!({}));
    args.json("-device", &json!({ "driver": "vmgenid", "id": "generation", "guid": "auto" }));
    for (i, slot) in (slot::ROOT_PORTS..).take(ROOT_PORTS).enumerate() {
        let properties = json!({ "chassis": i + 1, "slot": i + 1 });
        args.device("pcie-root-port", &format!("rp{i}"), slot, properties);
    }
}

/// Read-only directories are shown as they are. In writable ones, owners, modes, links and special
/// files that the guest makes exist only in extended attributes: on the host they are plain files of
/// QEMU's user, so no set-user-id program and no link out of the directory can be planted. They belong
/// to the group of all QEMUs, which may write them: the next VM's QEMU is another user.
fn shared_dir(args: &mut Args, index: usize, dir: &SharedDir, fd: RawFd) {
    let id = format!("shared{index}");
    let how = if dir.writable {
        "security_model=mapped-xattr,fmode=0660,dmode=0770"
    } else {
        "security_model=none,readonly=on"
    };
    args.pair("-fsdev", format!("local,id={id},multidevs=remap,{how},path={}", fd_file(fd)));
    let slot = slot::SHARED.saturating_add(u8::try_from(index).unwrap_or(u8::MAX));
    args.device("virtio-9p-pci", &id, slot, json!({ "fsdev": id, "mount_tag": dir.tag }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::example;
    use crate::spec::{Confinement, Disk, Layer, Network};

    fn wiring(spec: &RunSpec) -> Wiring {
        let saved = !matches!(spec.boot, Boot::Cold);
        Wiring {
            qmp: 7,
            console: 8,
            guest: 9,
            shell: 10,
            disk: 11,
            cloud_init: 12,
            job_config: 13,
            ram: saved.then_some(14),
            state: saved.then_some(15),
            backing: (0..).take(spec.disk.backing.len()).map(|n| 20 + n).collect(),
            shared: (0..).take(spec.shared.len()).map(|n| 30 + n).collect(),
        }
    }

    /// One option a line.
    fn lines(spec: &RunSpec) -> String {
        let mut text = String::new();
        for arg in qemu_args(spec, &wiring(spec)) {
            let arg = arg.into_string().expect("UTF-8");
            let option = arg.starts_with('-');
            text.push_str(if !option {
                " "
            } else if text.is_empty() {
                ""
            } else {
                "\n"
            });
            text.push_str(&arg);
        }
        text
    }

    /// The options in which two VMs differ.
    fn difference(a: &RunSpec, b: &RunSpec) -> String {
        let (a, b) = (lines(a), lines(b));
        let only = |these: &str, those: &str, sign: &str| -> Vec<String> {
            let absent = |line: &&str| !those.lines().any(|other| other == *line);
            these.lines().filter(absent).map(|line| format!("{sign} {line}")).collect()
        };
        [only(&a, &b, "-"), only(&b, &a, "+")].concat().join("\n")
    }

    fn template_files() -> (std::path::PathBuf, std::path::PathBuf) {
        ("/base/snapshots/k/ram".into(), "/base/snapshots/k/state".into())
    }

    #[test]
    fn a_cold_guest() {
        insta::assert_snapshot!(lines(&example()));
    }

    #[test]
    fn a_guest_with_kvm_overlay_shares_and_no_network() {
        let mut spec = example();
        spec.accel = Accel::Kvm;
        let layer = |path: &str, format| Layer { path: path.into(), format };
        spec.disk = Disk {
            path: "disk.qcow2".into(),
            format: DiskFormat::Qcow2,
            backing: vec![
                layer("/base/7.img", DiskFormat::Qcow2),
                layer("/base/src.img", DiskFormat::Raw),
            ],
            virtual_size: None,
        };
        spec.network = Network { isolated: true, filter: None };
        spec.confinement = Confinement { sandbox: false, uids: None };
        spec.shared = vec![
            SharedDir { path: "/srv/a,b".into(), tag: "downloads".into(), writable: false },
            SharedDir { path: "/srv/sstate".into(), tag: "sstate".into(), writable: true },
        ];
        insta::assert_snapshot!(difference(&example(), &spec));
    }

    #[test]
    fn template_and_clone_differ_from_a_cold_guest_in_nothing_but_the_ram() {
        let (ram, state) = template_files();
        let mut template = example();
        template.boot = Boot::Template { ram: ram.clone(), state: state.clone() };
        let mut clone = example();
        clone.boot = Boot::Restored { ram, state };
        insta::assert_snapshot!("cold_to_template", difference(&example(), &template));
        insta::assert_snapshot!("template_to_clone", difference(&template, &clone));
    }

    #[test]
    fn odd_sizes_are_rounded_up_to_whole_mib() {
        let mut spec = example();
        spec.ram = Bytes(Bytes::mib(256).0 + 1);
        assert_eq!(ram_bytes(&spec), Bytes::mib(257).0);
    }
}

//! Guests of 512 bytes: what the firmware loads from the first sector of a disk, in 16-bit machine
//! code, assembled by hand from Intel's instruction set reference.

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;
/// Where SeaBIOS puts the power management registers of `q35` (PM1 status, enable, control).
const PM1_STATUS: u16 = 0x600;
const PM1_ENABLE: u16 = 0x602;
const PM1_CONTROL: u16 = 0x604;
const RESET_CONTROL: u16 = 0xcf9;
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
/// `pvpanic-pci` is in slot 8 of bus 0.
const PVPANIC: u32 = 0x8000_0000 | (8 << 11);

/// `hlt; jmp -3`, for ever.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

pub fn sector(code: &[u8]) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// `mov dx, port`.
fn port(port: u16) -> [u8; 3] {
    let [low, high] = port.to_le_bytes();
    [0xba, low, high]
}

/// `mov al, value; out dx, al`.
pub fn out8(to: u16, value: u8) -> Vec<u8> {
    [&port(to)[..], &[0xb0, value, 0xee]].concat()
}

/// `mov ax, value; out dx, ax`.
fn out16(to: u16, value: u16) -> Vec<u8> {
    let [low, high] = value.to_le_bytes();
    [&port(to)[..], &[0xb8, low, high, 0xef]].concat()
}

/// `mov eax, value; out dx, eax`.
fn out32(to: u16, value: u32) -> Vec<u8> {
    [&port(to)[..], &[0x66, 0xb8], &value.to_le_bytes(), &[0x66, 0xef]].concat()
}

pub fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out8(COM1, byte)).collect()
}

/// Sleep type 0 (soft off) with the enable bit.
fn power_off_code() -> Vec<u8> {
    [&out16(PM1_CONTROL, 0x2000)[..], HALT].concat()
}

pub fn power_off() -> [u8; 512] {
    sector(&[print("Hi"), power_off_code()].concat())
}

pub fn reboot() -> [u8; 512] {
    sector(&[&out8(RESET_CONTROL, 0x06)[..], HALT].concat())
}

pub fn halt() -> [u8; 512] {
    sector(&[&print("Hi")[..], HALT].concat())
}

/// Fills the console: `out dx, al; jmp -3`.
pub fn flood() -> [u8; 512] {
    sector(&[&port(COM1)[..], &[0xb0, b'x', 0xee, 0xeb, 0xfd]].concat())
}

/// The same on the port that the shell is on.
pub fn flood_shell() -> [u8; 512] {
    sector(&[&port(COM2)[..], &[0xb0, b'$', 0xee, 0xeb, 0xfd]].concat())
}

/// Puts the panic device's registers where 16-bit code reaches them, and writes "panicked".
pub fn panic() -> [u8; 512] {
    let code = [
        out32(PCI_ADDRESS, PVPANIC | 0x10),
        out32(PCI_DATA, 0x000a_0000),
        out32(PCI_ADDRESS, PVPANIC | 0x04),
        out32(PCI_DATA, 0x0002),
        // mov ax, 0xa000; mov es, ax; mov byte [es:0], 1
        vec![0xb8, 0x00, 0xa0, 0x8e, 0xc0, 0x26, 0xc6, 0x06, 0x00, 0x00, 0x01],
        HALT.to_vec(),
    ];
    sector(&code.concat())
}

/// Waits for the power button (bit 8 of the status) and obeys.
pub fn obey_power_button() -> [u8; 512] {
    let code = [
        out16(PM1_ENABLE, 0x0100),
        print("Hi"),
        // loop: mov dx, PM1_STATUS; in ax, dx; test ah, 1; jz loop
        [&port(PM1_STATUS)[..], &[0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7]].concat(),
        power_off_code(),
    ];
    sector(&code.concat())
}

/// Writes the whole disk, 32 KiB at a time, by the firmware's extended write; then powers off.
pub fn fill_disk() -> [u8; 512] {
    const PACKET: u16 = 0x100;
    let [low, high] = (0x7c00 + PACKET).to_le_bytes();
    let code = [
        vec![0x31, 0xc0, 0x8e, 0xd8],                // xor ax, ax; mov ds, ax
        vec![0xb8, 0x00, 0x43],                      // loop: mov ax, 0x4300
        vec![0xbe, low, high],                       // mov si, packet
        vec![0xcd, 0x13],                            // int 0x13
        vec![0x72, 0x08],                            // jc end
        vec![0x66, 0x83, 0x06, low + 8, high, 0x40], // add dword [packet + 8], 64
        vec![0xeb, 0xee],                            // jmp loop
        power_off_code(),                            // end:
    ];
    let mut sector = sector(&code.concat());
    // Size, number of sectors, where the data comes from (this very code), first sector.
    let packet = [0x10, 0, 64, 0, 0x00, 0x00, 0xc0, 0x07, 1, 0, 0, 0, 0, 0, 0, 0];
    let at = usize::from(PACKET);
    sector[at..at + packet.len()].copy_from_slice(&packet);
    sector
}

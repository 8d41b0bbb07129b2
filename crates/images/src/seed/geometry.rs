//! Where the parts of a FAT file system lie, for a given size.

use forrest_core::model::Bytes;

pub(super) const SECTOR: usize = 512;
/// The length of a directory entry.
pub(super) const ENTRY: usize = 32;
pub(super) const ROOT_ENTRIES: usize = 512;
/// The number of the first cluster.
pub(super) const FIRST_CLUSTER: u16 = 2;

const BOOT_SECTORS: usize = 1;
const ROOT_SECTORS: usize = ROOT_ENTRIES * ENTRY / SECTOR;
/// From here on, a file system is a FAT16 one, whatever it says of itself.
const FAT16_FROM: usize = 4085;
/// From here on, it is a FAT32 one.
const FAT32_FROM: usize = 65525;
/// Drivers disagree about these limits by a few clusters: keep away from them.
const MARGIN: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    Twelve,
    Sixteen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    sectors: usize,
    sectors_per_cluster: usize,
    bits: Bits,
    table_sectors: usize,
    /// How many clusters there are.
    pub(super) clusters: usize,
}

impl Geometry {
    /// The one with the smallest clusters.
    pub(super) fn for_size(size: Bytes) -> Option<Self> {
        let sound = size >= Bytes(64 << 10)
            && size <= Bytes::gib(1)
            && size.0.is_multiple_of(SECTOR as u64);
        let sectors = usize::try_from(size.0).ok().filter(|_| sound)? / SECTOR;
        [1, 2, 4, 8, 16, 32, 64].into_iter().find_map(|n| Self::with_cluster(sectors, n))
    }

    fn with_cluster(sectors: usize, sectors_per_cluster: usize) -> Option<Self> {
        let room = sectors - BOOT_SECTORS - ROOT_SECTORS;
        // With the tables still counted as clusters: a little too many, so the tables fit for sure.
        let most = room / sectors_per_cluster;
        let (bits, table_len) = match most < FAT16_FROM {
            true => (Bits::Twelve, ((most + 2) * 3).div_ceil(2)),
            false => (Bits::Sixteen, (most + 2) * 2),
        };
        let table_sectors = table_len.div_ceil(SECTOR);
        let clusters = (room - 2 * table_sectors) / sectors_per_cluster;
        let sound = match bits {
            Bits::Twelve => clusters < FAT16_FROM - MARGIN,
            Bits::Sixteen => (FAT16_FROM + MARGIN..FAT32_FROM - MARGIN).contains(&clusters),
        };
        sound.then_some(Self { sectors, sectors_per_cluster, bits, table_sectors, clusters })
    }

    pub(super) const fn cluster_len(&self) -> usize {
        self.sectors_per_cluster * SECTOR
    }

    pub(super) const fn table_at(&self, copy: usize) -> u64 {
        ((BOOT_SECTORS + copy * self.table_sectors) * SECTOR) as u64
    }

    pub(super) const fn root_at(&self) -> u64 {
        self.table_at(2)
    }

    pub(super) const fn cluster_at(&self, cluster: u16) -> u64 {
        let data = self.root_at() + (ROOT_SECTORS * SECTOR) as u64;
        data + ((cluster - FIRST_CLUSTER) as usize * self.cluster_len()) as u64
    }

    pub(super) fn encode_table(&self, table: &[u16]) -> Vec<u8> {
        match self.bits {
            Bits::Sixteen => table.iter().flat_map(|next| next.to_le_bytes()).collect(),
            // Two entries of 12 bits share three bytes.
            Bits::Twelve => table
                .chunks(2)
                .flat_map(|pair| {
                    let (one, two) = (pair[0] & 0xfff, pair.get(1).unwrap_or(&0) & 0xfff);
                    [one as u8, (one >> 8 | two << 4) as u8, (two >> 4) as u8]
                })
                .collect(),
        }
    }

    pub(super) fn boot_sector(&self, label: &str, id: [u8; 4]) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0xeb, 0x3c, 0x90]);
        put(3, b"FORREST ");
        put(11, &(SECTOR as u16).to_le_bytes());
        put(13, &[self.sectors_per_cluster as u8]);
        put(14, &(BOOT_SECTORS as u16).to_le_bytes());
        put(16, &[2]); // tables
        put(17, &(ROOT_ENTRIES as u16).to_le_bytes());
        match u16::try_from(self.sectors) {
            Ok(sectors) => put(19, &sectors.to_le_bytes()),
            Err(_) => put(32, &(self.sectors as u32).to_le_bytes()),
        }
        put(21, &[0xf8]); // a fixed disk
        put(22, &(self.table_sectors as u16).to_le_bytes());
        put(24, &32_u16.to_le_bytes()); // sectors per track: nobody's concern any more
        put(26, &8_u16.to_le_bytes()); // heads: likewise
        put(36, &[0x80, 0, 0x29]);
        put(39, &id);
        put(43, &super::names::padded_label(label));
        put(54, if self.bits == Bits::Twelve { b"FAT12   " } else { b"FAT16   " });
        put(510, &[0x55, 0xaa]);
        sector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_size_has_a_geometry_whose_parts_fit() {
        for kib in (64..4096).step_by(3).chain((4096..1 << 20).step_by(9973)) {
            let geometry = Geometry::for_size(Bytes(kib << 10)).expect("a geometry");
            let end = geometry.cluster_at(FIRST_CLUSTER)
                + (geometry.clusters * geometry.cluster_len()) as u64;
            assert!(end <= kib << 10, "{kib} KiB: {geometry:?}");
            let table = geometry.encode_table(&vec![0; geometry.clusters + 2]);
            assert!(table.len() <= geometry.table_sectors * SECTOR, "{kib} KiB: {geometry:?}");
        }
        assert!(Geometry::for_size(Bytes(63 << 10)).is_none());
        assert!(Geometry::for_size(Bytes((64 << 10) + 1)).is_none());
        assert!(Geometry::for_size(Bytes(u64::MAX)).is_none());
    }
}

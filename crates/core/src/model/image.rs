//! Disk images by stage: src, machine, run.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MachineTypeName, Timestamp};

/// The number of a machine image: 1 for the first one that a job left behind, then rising.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

/// Six digits, as in the generation's file name (`000007`).
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// An image that a run can start from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "lowercase")]
pub enum ImageRef {
    /// An operating system image, named by the path that the configuration gives.
    Src {
        /// The image's path.
        path: String,
    },
    /// A generation of a machine type's own image, or of the machine type it is based on.
    Machine {
        /// Whose image it is.
        machine: MachineTypeName,
        /// Which one.
        generation: Generation,
    },
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Src { path } => write!(f, "src {path}"),
            Self::Machine { machine, generation } => {
                write!(f, "machine {machine} generation {generation}")
            }
        }
    }
}

/// An image with the time that decides whether it is newer than another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartImage {
    /// Which image.
    pub image: ImageRef,
    /// When its content was made: the modification time of a src image, the promotion time of a
    /// machine image.
    pub made_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_which_image_it_is() {
        assert_eq!(ImageRef::Src { path: "/debian.img".into() }.to_string(), "src /debian.img");
        let machine = "o/r/build".parse().expect("a sound name");
        let image = ImageRef::Machine { machine, generation: Generation(7) };
        assert_eq!(image.to_string(), "machine o/r/build generation 000007");
    }
}

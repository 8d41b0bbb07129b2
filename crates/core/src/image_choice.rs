//! Which image a run starts from: that of its base or the machine type's own.

use crate::model::{StartImage, UseBase};

/// Chooses between the base (a src image, or the machine image of the machine type that this one is
/// based on) and the machine type's own image, each where it exists.
///
/// `None` when there is nothing to start from. With [`UseBase::Always`] that includes the case of a
/// machine image without a base: it is never used.
pub fn choose_start_image(
    use_base: UseBase,
    base: Option<StartImage>,
    machine: Option<StartImage>,
) -> Option<StartImage> {
    match use_base {
        UseBase::Always => base,
        UseBase::Never => machine.or(base),
        UseBase::IfNewer => match (base, machine) {
            // Of two equally old ones, the machine image has more of the work done.
            (Some(base), Some(machine)) if base.made_at > machine.made_at => Some(base),
            (base, machine) => machine.or(base),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Generation, ImageRef, Timestamp};

    fn base() -> impl Strategy<Value = Option<StartImage>> {
        proptest::option::of((0_u64..5).prop_map(|ms| StartImage {
            image: ImageRef::Src { path: "/src.img".to_owned() },
            made_at: Timestamp(ms),
        }))
    }

    fn machine() -> impl Strategy<Value = Option<StartImage>> {
        proptest::option::of((0_u64..5).prop_map(|ms| StartImage {
            image: ImageRef::Machine {
                machine: "o/r/m".parse().expect("a sound name"),
                generation: Generation(1),
            },
            made_at: Timestamp(ms),
        }))
    }

    proptest! {
        #[test]
        fn always_never_picks_the_machine_image(base in base(), machine in machine()) {
            prop_assert_eq!(choose_start_image(UseBase::Always, base.clone(), machine), base);
        }

        #[test]
        fn never_picks_the_base_only_without_a_machine_image(base in base(), machine in machine()) {
            let chosen = choose_start_image(UseBase::Never, base.clone(), machine.clone());
            prop_assert_eq!(chosen, if machine.is_some() { machine } else { base });
        }

        #[test]
        fn if_newer_picks_the_newer_and_the_machine_image_on_a_tie(base in base(), machine in machine()) {
            let chosen = choose_start_image(UseBase::IfNewer, base.clone(), machine.clone());
            match (base, machine) {
                (Some(base), Some(machine)) => {
                    let newest = base.made_at.max(machine.made_at);
                    let chosen = chosen.expect("there were two to choose from");
                    prop_assert_eq!(chosen.made_at, newest);
                    prop_assert_eq!(chosen == machine, machine.made_at == newest);
                }
                (base, machine) => prop_assert_eq!(chosen, base.or(machine)),
            }
        }
    }
}

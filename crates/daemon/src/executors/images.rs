//! What runs start from: base images, and which generation of a machine image is in use.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forrest_config::{Base, Config, Machine};
use forrest_core::image_choice::choose_start_image;
use forrest_core::model::{Generation, MachineTypeName, StartImage};
use forrest_images::{ImageError, Store};

use super::{Executors, RunContext, TakingOut, blocking};
use crate::clock::now;

/// Pause before another try to take a generation out of use; doubles up to [`MARK_PAUSE_MAX`].
const MARK_PAUSE: Duration = Duration::from_secs(5);
/// The longest of these pauses.
const MARK_PAUSE_MAX: Duration = Duration::from_secs(5 * 60);

impl Executors {
    /// Waits until the run's base image is in the store, where it is taken there at all, so that other runs
    /// need not wait for that, too. What goes wrong shows when the run's disk is made.
    pub(super) async fn import_for(&self, run: &RunContext) {
        let Some(Base::Image(image)) = run.settings.as_ref().map(|settings| &settings.base) else {
            return;
        };
        let image = image.resolve().to_owned();
        let (store, path) = (self.store.clone(), image.clone());
        if let Ok(false) = blocking(move || store.src_is_ready(&path)).await {
            let imported = self
                .on_disk_among(&self.imports, move |store| store.prepare_src(&image, &mut |_| {}));
            if let Err(trouble) = imported.await {
                tracing::debug!(runner = %run.runner, "its base image: {}", trouble.what);
            }
        }
    }

    /// Does what base images need once, such as being imported from another file system, so that no job
    /// waits for it; and removes what was imported for images that are not configured any more.
    pub(crate) async fn prepare_base_images(self, config: Arc<Config>) {
        let images: BTreeSet<PathBuf> = config
            .machines()
            .filter_map(|machine| match &machine.base {
                Base::Image(path) => Some(path.resolve().to_owned()),
                Base::Machine(_) => None,
            })
            .collect();
        for image in images.clone() {
            let prepared = self.on_disk_among(&self.imports, move |store| {
                let mut told = 0;
                store.prepare_src(&image, &mut |share| {
                    // Every tenth of the way is a line in the log.
                    let tenth = (share * 10.0) as u32;
                    if std::mem::replace(&mut told, tenth) != tenth {
                        tracing::info!(image = %image.display(), "importing: {} %", tenth * 10);
                    }
                })
            });
            if let Err(trouble) = prepared.await {
                tracing::warn!("a base image cannot be used yet: {}", trouble.what);
            }
        }
        let images: Vec<PathBuf> = images.into_iter().collect();
        if let Err(trouble) = self.on_disk(move |store| store.sweep_src(&images)).await {
            tracing::warn!("could not remove imported images: {}", trouble.what);
        }
    }

    /// Takes a generation out of use, and tries that until it is.
    pub(crate) async fn mark_broken(
        self,
        machine: MachineTypeName,
        generation: Generation,
        why: String,
        taking_out: TakingOut,
    ) {
        let marked = self.try_to_mark(&machine, generation, &why).await;
        // Whatever became of it: runs of other machine types have nothing to do with it.
        drop(taking_out);
        if marked {
            return;
        }
        // In a task that ends with the daemon: nobody who stops it waits for this.
        tokio::spawn(async move {
            let mut pause = MARK_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                if self.try_to_mark(&machine, generation, &why).await {
                    return;
                }
                pause = (pause * 2).min(MARK_PAUSE_MAX);
            }
        });
    }

    /// Whether the generation is out of use now.
    async fn try_to_mark(
        &self,
        machine: &MachineTypeName,
        generation: Generation,
        why: &str,
    ) -> bool {
        let (of, why) = (machine.clone(), why.to_owned());
        let marked = self.on_disk(move |store| {
            match store.mark_broken(&of, generation, &why, now()) {
                Ok(_)
                | Err(
                    ImageError::NoSuchGeneration { .. } | ImageError::GenerationBroken { .. },
                ) => Ok(()),
                Err(error) => Err(error),
            }
        });
        match marked.await {
            Ok(()) => true,
            Err(trouble) => {
                tracing::error!(
                    %machine, %generation,
                    "could not take the generation out of use, trying again: {}", trouble.what
                );
                false
            }
        }
    }
}

/// The image that a run of this machine type starts from now.
pub(super) fn start_image(store: &Store, settings: &Machine) -> Result<StartImage, String> {
    let text = |error: ImageError| error.to_string();
    let base = match &settings.base {
        Base::Image(path) => Some(store.src_image(path.resolve()).map_err(text)?),
        Base::Machine(machine) => store.machine_image(machine).map_err(text)?,
    };
    let own = store.machine_image(&settings.name).map_err(text)?;
    choose_start_image(settings.use_base, base, own).ok_or_else(|| match &settings.base {
        Base::Image(_) => "there is no image to start from".to_owned(),
        Base::Machine(machine) => format!(
            "there is no image to start from yet: no job of {machine} has left its disk behind \
             (with the persistence token)"
        ),
    })
}

//! Stories: what happens to Forrest, and what it has to do about it.

mod adoption;
mod clock;
mod fencing;
mod graces;
mod health;
mod limits;
mod notes;
mod polling;
mod preparing;
mod reports;
mod room;
mod scheduling;
mod settling;
mod snapshots;
mod trust;
mod view;
mod world;

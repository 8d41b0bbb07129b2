//! The real daemon as a process, the simulator, and the real QEMU with guests that never do anything:
//! everything that goes on around a virtual machine, in seconds. What happens inside is the business
//! of the guest stories.

mod bad_config;
mod bad_images;
mod containment;
mod contract;
mod endpoint;
mod hands;
mod host_trouble;
mod http;
mod operator;
mod polling;
mod registration;
mod restarts;
mod scene;
mod upheaval;

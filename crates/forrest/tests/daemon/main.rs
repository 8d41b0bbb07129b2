//! The real daemon as a process, the simulator, and the real QEMU with guests that never do anything:
//! everything that goes on around a virtual machine, in seconds. What happens inside is the business
//! of the guest stories.

mod bad_config;
mod bad_images;
mod containment;
mod contract;
mod endpoint;
mod http;
mod operator;
mod registration;
mod scene;
mod upheaval;

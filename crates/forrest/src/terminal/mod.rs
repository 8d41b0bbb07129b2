//! Everything about terminals: what they are told, and what they must never be told.
//!
//! - [`sequences`]: takes a byte stream apart into text and control sequences.
//! - [`neutral`]: text of strangers, made harmless.
//! - [`guard`]: the little that even an interactive session must not get through.
//! - [`layout`]: width, wrapping, shortening.
//! - [`paint`]: colours, where they are wanted.
//! - [`raw`]: a terminal in raw mode, and back.
//! - [`confirm`]: questions before something is lost.

pub mod confirm;
pub mod guard;
pub mod layout;
pub mod neutral;
pub mod paint;
pub mod raw;
mod sequences;
